"""Makes the photographs and the clip of this folder: `python tests/media/make.py` (needs scikit-image)."""

from pathlib import Path

import av
import numpy as np
from PIL import Image
from skimage import data

HERE = Path(__file__).parent
WIDTH, HEIGHT = 320, 240
RATE = 25  # frames per second
# Of each photograph: seconds, and the crop (left, top, width; pixels, at 4 : 3) at the begin and at the end.
SHOTS = [
    ("coffee", 1.0, (30, 0, 500), (90, 60, 320)),  # zoom in on the cup
    ("chelsea", 0.8, (0, 20, 340), (110, 45, 340)),  # pan to the right
    ("astronaut", 0.8, (140, 20, 240), (0, 60, 510)),  # zoom out from the face
]


def main() -> None:
    photographs = {name: Image.fromarray(getattr(data, name)()) for name, *_ in SHOTS}
    for name, photograph in photographs.items():
        photograph.save(HERE / f"{name}.jpg", quality=85, optimize=True)
    with av.open(str(HERE / "clip.mp4"), "w", options={"movflags": "faststart"}) as container:
        options = {"crf": "26", "preset": "veryslow", "threads": "1"}
        stream = container.add_stream("libx264", rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for name, seconds, begin, end in SHOTS:
            for moment in np.linspace(0, 1, round(seconds * RATE)):
                left, top, width = np.array(begin) * (1 - moment) + np.array(end) * moment
                box = (left, top, left + width, top + width * HEIGHT / WIDTH)
                frame = photographs[name].resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, box=box)
                container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode(None))


if __name__ == "__main__":
    main()
