"""The selection as ONNX: the greedy step as the function `rediprune::MaxMinSelect`, and the whole `select` stage.

Written as ONNX text, in standard operators only, so that what an engine computes can be read here. Where the plugin of
the function's name is registered (TensorRT) it takes the node, whose attributes are for it; everywhere else the function
body runs.
"""

from string import Template

import numpy as np
import onnx.parser
import onnx_ir as ir

from .identical_tokens import IDENTICAL_COSINE, fingerprint_weights

DOMAIN = "rediprune"
OPSET = 20  # at 23 and above TensorRT may fuse what precedes the Loop into an attention, and crash
IR_VERSION = 10

# ONNX Runtime adds up a row from its first aligned address on, so that equal rows have equal sums only where all rows
# begin alike: at multiples of 64 bytes.
_ROW_ALIGNMENT = 16  # float32 channels

# Loop state: the last pick and each token's distance to its nearest pick (−inf once picked).
# The Loop goes on with a constant `true`: TensorRT's parser refuses a condition passed through Identity.
_MAX_MIN_SELECT = """
<domain: "rediprune", opset_import: ["" : 20]>
MaxMinSelect (similarity, relevance, num_keep, alpha) => (indices)
{
    zero = Constant <value_int: int = 0> ()
    one = Constant <value_int: int = 1> ()
    unit = Constant <value_float: float = 1.0> ()
    axis0 = Constant <value_ints: ints = [0]> ()
    axis1 = Constant <value_ints: ints = [1]> ()
    yes = Constant <value = bool {1}> ()
    low = Constant <value = float {-inf}> ()
    high = Constant <value = float {inf}> ()

    shape = Shape (relevance)
    patches = Gather (shape, one)
    count = Min (num_keep, patches)
    columns = Range (zero, patches, one)
    column = Unsqueeze (columns, axis0)

    excluded = IsInf <detect_positive = 0> (relevance)
    scaled = Mul (relevance, alpha)
    weighted = Where (excluded, low, scaled)
    first = ArgMax <axis = 1, keepdims = 1> (relevance)
    far = Expand (high, shape)
    last, nearest, picks = Loop (count, yes, first, far) <body = pick_one
        (int64 step, bool going, int64[F, 1] pick, float[F, P] near)
        => (bool go_on, int64[F, 1] next_pick, float[F, P] next_near, int64[F] picked)
        {
            row = GatherND <batch_dims = 1> (similarity, pick)
            distance = Sub (unit, row)
            nearer = Min (near, distance)
            is_pick = Equal (column, pick)
            next_near = Where (is_pick, low, nearer)
            score = Add (next_near, weighted)
            next_pick = ArgMax <axis = 1, keepdims = 1> (score)
            picked = Squeeze (pick, axis1)
            go_on = Constant <value = bool {1}> ()
        }>
    by_frame = Transpose <perm = [1, 0]> (picks)
    length = Unsqueeze (count, axis0)
    indices, unused = TopK <axis = 1, largest = 0, sorted = 1> (by_frame, length)
}
"""

# $match_width stands for one of `_match_width`'s cases, $align for `_align`'s.
_SELECT = Template("""
<ir_version: 10, opset_import: ["" : 20, "rediprune" : 1]>
select ($dtype[F, P, $channels] features, $dtype[L, $depth] text_embeds, int64 num_keep, float alpha, float tau$inputs)
    => (int64[F, K] indices, $dtype[F, K, $channels] kept)
{
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
    visual_unit_t = Transpose <perm = [0, 2, 1]> (visual_unit)
    product = MatMul (visual_unit, visual_unit_t)
    cosine = Min (product, whole)

    # Identical tokens: sorted by fingerprint they are neighbours, the lowest index first. All but the first have a
    # cosine of 1 to everything: like the first until it is picked, and at a distance of 0 from then on.
    shape = Shape (relevance)
    patches = Gather (shape, one)
    all_patches = Unsqueeze (patches, axis0)
    ranks = Range (zero, patches, one)
    head_length = Constant <value_ints: ints = [$head]> ()
    head = Slice (visual_unit, axis0, head_length, axis2)
    head_weights = Constant <value_floats: floats = [$weights]> ()
    weighted_head = Mul (head, head_weights)
    fingerprint = ReduceSum <keepdims = 0> (weighted_head, last_axis)
    sorted_print, by_print = TopK <axis = 1> (fingerprint, all_patches)
    column = Unsqueeze (by_print, last_axis)
    sorted_relevance = GatherND <batch_dims = 1> (relevance, column)
    rank_less_one = Sub (ranks, one)
    before = Max (rank_less_one, zero)
    print_before = Gather <axis = 1> (sorted_print, before)
    relevance_before = Gather <axis = 1> (sorted_relevance, before)
    index_before = Gather <axis = 1> (by_print, before)
    row = Unsqueeze (index_before, last_axis)
    cell = Concat <axis = -1> (row, column)
    cosine_before = GatherND <batch_dims = 1> (cosine, cell)
    bound = Constant <value_float: float = $bound> ()
    has_before = Greater (ranks, zero)
    same_direction = Greater (cosine_before, bound)
    same_print = Equal (sorted_print, print_before)
    same_relevance = Equal (sorted_relevance, relevance_before)
    same_sums = And (same_print, same_relevance)
    same = And (same_sums, same_direction)
    repeats = And (same, has_before)
    sorted_least = Where (repeats, whole, low)
    least = ScatterElements <axis = 1> (sorted_least, by_print, sorted_least)
    least_of_column = Unsqueeze (least, axis1)
    similarity = Max (cosine, least_of_column)

    # The τ filter: relevance −inf for all but the candidates.
    count = Min (num_keep, patches)
    values, order = TopK <axis = 1> (relevance, all_patches)
    ranks_all = Expand (ranks, shape)
    rank = ScatterElements <axis = 1> (order, order, ranks_all)
    above = GreaterOrEqual (relevance, tau)
    above_i = Cast <to = 7> (above)
    relevant = ReduceSum <keepdims = 1> (above_i, axis1)
    relevant_or_count = Max (relevant, count)
    triple = Mul (count, three)
    next_count = Add (count, one)
    pool = Max (triple, next_count)
    pool_size = Min (pool, patches)
    half = Div (patches, two)
    few = Less (count, half)
    filtered = Where (few, pool_size, relevant_or_count)
    filters = Greater (tau, none)
    candidates = Where (filters, filtered, patches)
    is_candidate = Less (rank, candidates)
    eligible = Where (is_candidate, relevance, low)

    indices = rediprune.MaxMinSelect <plugin_namespace = "rediprune", plugin_version = "1",
        tensorrt_plugin_shape_input_indices = [2]> (similarity, eligible, num_keep, alpha)
    pointers = Unsqueeze (indices, last_axis)
    kept = GatherND <batch_dims = 1> (features, pointers)
}
""")

_TYPES = {np.dtype("float32"): "float", np.dtype("float16"): "float16"}


def max_min_function() -> ir.Function:
    """`rediprune::MaxMinSelect(similarity [F,P,P], relevance [F,P], num_keep, alpha) → indices [F,K]`, int64 ascending.

    float32 scores; relevance −inf marks a token that may not be picked; ties go to the lowest index; num_keep (int64
    scalar) above P counts as P, below 1 is undefined. Equal to `reference.max_min_select`.
    """
    return ir.from_proto(onnx.parser.parse_function(_MAX_MIN_SELECT))


def select_model(channels: int, depth: int, dtype: np.dtype | type = np.float32) -> ir.Model:
    """The `select` stage: features [F,P,C], text_embeds [L,D], num_keep, alpha, tau → indices [F,K], kept [F,K,C].

    L is at least 1; an empty question is one zero row. Scores are float32 whatever `dtype` (float32 or float16) the
    features have. Equal to `pool_query` followed by `select_tokens`.

    Args:
        channels: C, width of the vision tower's features.
        depth: D, width of the language model's embeddings.
        dtype: of features, text_embeds and kept.

    Returns:
        A model of opset 20 whose only function is `max_min_function`.
    """
    match_width, pooling = _match_width(channels, depth)
    weights = fingerprint_weights(channels)
    text = _SELECT.substitute(
        dtype=_TYPES[np.dtype(dtype)],
        channels=channels,
        depth=depth,
        inputs="" if pooling is None else f", float[{depth}, {channels}] pooling",
        match_width=match_width,
        align=_align(channels),
        head=len(weights),
        weights=", ".join(map(repr, weights.tolist())),
        bound=IDENTICAL_COSINE,
    )
    model = ir.from_onnx_text(text)
    if pooling is not None:  # a constant has no readable form in the text: it is an input there and bound here
        value = model.graph.inputs.pop()
        value.const_value = ir.tensor(pooling, name=value.name)
        model.graph.register_initializer(value)
    function = max_min_function()
    model.functions[function.identifier()] = function
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
