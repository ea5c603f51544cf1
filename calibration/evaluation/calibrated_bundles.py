"""Which bundles a report is on: calibrated ones, and the baseline that they were made of."""

from collections.abc import Sequence
from pathlib import Path

from ...runtime.bundle import Bundle
from ...runtime.errors import RedipruneError


def find_bundles(folders: Sequence[Path]) -> list[Bundle]:
    """Find the bundles to report on, first the baseline that the others were made of.

    Args:
        folders: the baseline, calibrated bundles, or both. Alone, the baseline is followed by those beside it that were
            made of it; in its absence it is looked for where it was when they were made.

    Raises:
        RedipruneError: no calibrated bundle, or one of another baseline.
    """
    opened = [Bundle.open(folder) for folder in folders]
    baselines = [bundle for bundle in opened if bundle.manifest.calibration is None]
    made = [bundle for bundle in opened if bundle.manifest.calibration is not None]
    if len(baselines) > 1:
        raise RedipruneError(
            f"'{baselines[0].folder}' and '{baselines[1].folder}' are both uncalibrated; a report is on one bundle and "
            "those made of it"
        )
    if not baselines and made and made[0].manifest.calibration is not None:
        baselines = [Bundle.open(made[0].manifest.calibration.source)]
    baseline = baselines[0]
    made = made or _made_beside(baseline)
    if not made:
        raise RedipruneError(
            f"nothing beside '{baseline.folder}' was calibrated from it; make something with: rediprune calibrate "
            f"{baseline.folder} -o {baseline.folder}-int8"
        )
    for bundle in made:
        if not _made_of(bundle, baseline):
            raise RedipruneError(
                f"'{bundle.folder}' was not made of '{baseline.folder}' as it is; make it again with: "
                f"{bundle.manifest.rebuild_command(bundle.folder)}"
            )
    return [baseline, *made]


def _made_beside(baseline: Bundle) -> list[Bundle]:
    """The bundles in the same folder that were made of it."""
    made = []
    for path in sorted(baseline.folder.resolve().parent.glob("[!.]*/manifest.json")):
        try:
            bundle = Bundle.open(path.parent)
        except RedipruneError:
            continue  # whatever lies there, it was not asked for
        if _made_of(bundle, baseline):
            made.append(bundle)
    return made


def _made_of(bundle: Bundle, baseline: Bundle) -> bool:
    """Whether the bundle was calibrated from this one: building engines changes its digest, its model stays the same."""
    made, theirs = bundle.manifest.calibration, baseline.manifest
    if made is None:
        return False
    return bundle.manifest.source == theirs.source and made.source_precision == theirs.precision
