"""The selection as ONNX: the greedy step as the function `rediprune::MaxMinSelect`, and the whole `select` stage.

Written as ONNX text, in standard operators only, so that what an engine computes can be read here. Where the plugin of
the function's name is registered (TensorRT) it takes the node, whose attributes are for it; everywhere else the function
body runs.
"""

from string import Template

import numpy as np
import onnx.parser
import onnx_ir as ir

from .onnx_lines import DOMAIN, IR_VERSION, OPSET, model_of_text

__all__ = ["DOMAIN", "IR_VERSION", "OPSET", "max_min_function", "select_model"]

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

# What a $ stands for is in `onnx_lines`.
_SELECT = Template("""
<ir_version: 10, opset_import: ["" : 20, "rediprune" : 1]>
select ($dtype[F, P, $channels] features, $dtype[L, $depth] text_embeds, int64 num_keep, float alpha, float tau$inputs)
    => (int64[F, K] indices, $dtype[F, K, $channels] kept)
{
    $constants
    $query
    $unit_tokens
    visual_unit_t = Transpose <perm = [0, 2, 1]> (visual_unit)
    product = MatMul (visual_unit, visual_unit_t)
    cosine = Min (product, whole)

    # Identical tokens: sorted by fingerprint they are neighbours, the lowest index first. All but the first have a
    # cosine of 1 to everything: like the first until it is picked, and at a distance of 0 from then on.
    shape = Shape (relevance)
    patches = Gather (shape, one)
    all_patches = Unsqueeze (patches, axis0)
    ranks = Range (zero, patches, one)
    $fingerprint
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
    model = model_of_text(_SELECT, channels, depth, dtype)
    function = max_min_function()
    model.functions[function.identifier()] = function
    return model
