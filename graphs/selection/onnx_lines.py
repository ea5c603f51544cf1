"""Lines of ONNX text that the selection graphs begin with: the query vector, the tokens' unit vectors, their relevance.

They expect the constants of `_CONSTANTS` and the inputs `features` [F, P, C] and `text_embeds` [L, D].
"""

from string import Template

import numpy as np
import onnx_ir as ir

from .identical_tokens import IDENTICAL_COSINE, fingerprint_weights

DOMAIN = "rediprune"
OPSET = 20  # at 23 and above TensorRT may fuse what precedes the Loop into an attention, and crash
IR_VERSION = 10
_TYPES = {np.dtype("float32"): "float", np.dtype("float16"): "float16"}

# ONNX Runtime adds up a row from its first aligned address on, so that equal rows have equal sums only where all rows
# begin alike: at multiples of 64 bytes.
_ROW_ALIGNMENT = 16  # float32 channels

_CONSTANTS = """
    eps = Constant <value_float: float = 1e-12> ()
    zero = Constant <value_int: int = 0> ()
    one = Constant <value_int: int = 1> ()
    two = Constant <value_int: int = 2> ()
    three = Constant <value_int: int = 3> ()
    steepness = Constant <value_float: float = 3.0> ()
    none = Constant <value_float: float = 0.0> ()
    whole = Constant <value_float: float = 1.0> ()
    low = Constant <value = float {-inf}> ()
    axis0 = Constant <value_ints: ints = [0]> ()
    axis1 = Constant <value_ints: ints = [1]> ()
    axis2 = Constant <value_ints: ints = [2]> ()
    last_axis = Constant <value_ints: ints = [-1]> ()
"""

# $match_width stands for one of `_match_width`'s cases, $align for `_align`'s.
_QUERY = Template("""
    # The query: text_embeds [L, D] → query [D] → matched [C].
    embeds = Cast <to = 1> (text_embeds)
    embed_norm = ReduceL2 (embeds, last_axis)
    embed_scale = Max (embed_norm, eps)
    embed_unit = Div (embeds, embed_scale)
    embed_unit_t = Transpose <perm = [1, 0]> (embed_unit)
    alike = MatMul (embed_unit, embed_unit_t)
    attention = Softmax <axis = -1> (alike)
    mixed = MatMul (attention, embeds)
    embeds_shape = Shape (embeds)
    tokens = Gather (embeds_shape, zero)
    steps_before = Sub (tokens, one)
    spans = Max (steps_before, one)
    spans_f = Cast <to = 1> (spans)
    steps = Range (zero, tokens, one)
    steps_f = Cast <to = 1> (steps)
    position = Div (steps_f, spans_f)
    growth = Mul (position, steepness)
    raw_weight = Exp (growth)
    weight_sum = ReduceSum (raw_weight, axis0)
    weight = Div (raw_weight, weight_sum)
    weight_column = Unsqueeze (weight, axis1)
    weighted = Mul (mixed, weight_column)
    query = ReduceSum <keepdims = 0> (weighted, axis0)
    $match_width
    query_norm = ReduceL2 (matched, last_axis)
    query_scale = Max (query_norm, eps)
    query_whole = Div (matched, query_scale)
""")

_UNIT_TOKENS = Template("""
    # The scores: relevance [F, P], cosine [F, P, P].
    visual_whole = Cast <to = 1> (features)
    $align
    visual_squares = Mul (visual, visual)
    visual_square = ReduceSum (visual_squares, last_axis)
    visual_norm = Sqrt (visual_square)
    visual_scale = Max (visual_norm, eps)
    visual_unit = Div (visual, visual_scale)
    products = Mul (visual_unit, query_unit)
    relevance = ReduceSum <keepdims = 0> (products, last_axis)
""")

_FINGERPRINT = Template("""
    head_length = Constant <value_ints: ints = [$head]> ()
    head = Slice (visual_unit, axis0, head_length, axis2)
    head_weights = Constant <value_floats: floats = [$weights]> ()
    weighted_head = Mul (head, head_weights)
    fingerprint = ReduceSum <keepdims = 0> (weighted_head, last_axis)
""")


def model_of_text(text: Template, channels: int, depth: int, dtype: np.dtype | type, **numbers: int) -> ir.Model:
    """The model that a text describes, with the lines of this module in place of their names.

    Args:
        text: its $constants, $query, $unit_tokens and $fingerprint are put in here, its $inputs go behind the last input.
        channels: C, width of the vision tower's features.
        depth: D, width of the language model's embeddings.
        dtype: of the features and the embeddings, float32 or float16.
        numbers: what else the text has a $ for.
    """
    match_width, pooling = _match_width(channels, depth)
    weights = fingerprint_weights(channels)
    written = text.substitute(
        dtype=_TYPES[np.dtype(dtype)],
        channels=channels,
        depth=depth,
        inputs="" if pooling is None else f", float[{depth}, {channels}] pooling",
        constants=_CONSTANTS.strip(),
        query=_QUERY.substitute(match_width=match_width).strip(),
        unit_tokens=_UNIT_TOKENS.substitute(align=_align(channels)).strip(),
        fingerprint=_FINGERPRINT.substitute(head=len(weights), weights=", ".join(map(repr, weights.tolist()))).strip(),
        bound=IDENTICAL_COSINE,
        **numbers,
    )
    model = ir.from_onnx_text(written)
    if pooling is not None:  # a constant has no readable form in the text: it is an input there and bound here
        value = model.graph.inputs.pop()
        value.const_value = ir.tensor(pooling, name=value.name)
        model.graph.register_initializer(value)
    return model


def _match_width(channels: int, depth: int) -> tuple[str, np.ndarray | None]:
    """The lines that turn `query` [D] into `matched` [C] (`query_vector.match_width`), and the matrix they need, if any."""
    if depth == channels:
        return "matched = Identity (query)", None
    if depth < channels:
        lines = f"""times = Constant <value_ints: ints = [{-(-channels // depth)}]> ()
            tiled = Tile (query, times)
            stop = Constant <value_ints: ints = [{channels}]> ()
            matched = Slice (tiled, axis0, stop)"""
        return lines, None
    if depth % channels == 0:
        lines = f"""groups = Constant <value_ints: ints = [{channels}, {depth // channels}]> ()
            grouped = Reshape (query, groups)
            matched = ReduceMean <keepdims = 0> (grouped, axis1)"""
        return lines, None
    # Adaptive average pooling: output i averages inputs floor(i·D/C) … ceil((i+1)·D/C) − 1.
    pooling = np.zeros((depth, channels), np.float32)
    for i in range(channels):
        start, stop = i * depth // channels, -(-(i + 1) * depth // channels)
        pooling[start:stop, i] = 1 / (stop - start)
    return "matched = MatMul (query, pooling)", pooling


def _align(channels: int) -> str:
    """The lines that widen tokens and query by zeros to `_ROW_ALIGNMENT`; the towers' own widths need none."""
    extra = -channels % _ROW_ALIGNMENT
    if not extra:
        return "visual = Identity (visual_whole)\n    query_unit = Identity (query_whole)"
    return f"""visual_pads = Constant <value_ints: ints = [0, 0, 0, 0, 0, {extra}]> ()
    visual = Pad (visual_whole, visual_pads)
    query_pads = Constant <value_ints: ints = [0, {extra}]> ()
    query_unit = Pad (query_whole, query_pads)"""
