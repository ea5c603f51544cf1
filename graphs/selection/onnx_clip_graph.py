"""The `select_clip` stage as ONNX: the selection over a whole clip, in standard operators only (see `clip_reference`)."""

from string import Template

import numpy as np
import onnx.parser
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from .onnx_lines import model_of_text

CANDIDATES = 96  # 80 to 128 take the same time at 8 × 576, more take longer, and for a single frame so do 128

# near [N]: each token's distance to its nearest pick, −inf once picked. Identical tokens get the numbers of the first.
_ADD_PICKS = """
<domain: "rediprune", opset_import: ["" : 20]>
AddPicks (unit, first, near, picks) => (next_near)
{
    axis1 = Constant <value_ints: ints = [1]> ()
    whole = Constant <value_float: float = 1.0> ()
    low = Constant <value = float {-inf}> ()
    pick_first = Gather (first, picks)
    pick_unit = Gather (unit, pick_first)
    pick_unit_t = Transpose <perm = [1, 0]> (pick_unit)
    product = MatMul (unit, pick_unit_t)
    highest = ReduceMax <keepdims = 0> (product, axis1)
    at_most_one = Min (highest, whole)
    shape = Shape (picks)
    wholes = Expand (whole, shape)
    nearest = ScatterElements <axis = 0> (at_most_one, pick_first, wholes)
    of_first = Gather (nearest, first)
    distance = Sub (whole, of_first)
    nearer = Min (near, distance)
    lows = Expand (low, shape)
    next_near = ScatterElements <axis = 0> (nearer, picks, lows)
}
"""

# Whether no token is worth keeping any more, and whether the choice ends with that: no frame is short of its least.
_IS_SPENT = """
<domain: "rediprune", opset_import: ["" : 20]>
IsSpent (near, pull, threshold, owed) => (ends, spent)
{
    zero = Constant <value_int: int = 0> ()
    score = Add (near, pull)
    best = ReduceMax <keepdims = 0> (score)
    spent = Less (best, threshold)
    debt = ReduceSum <keepdims = 0> (owed)
    no_debt = Equal (debt, zero)
    ends = And (spent, no_debt)
}
"""

# ceiling [M, M]: the score that a pick (row) leaves the others at most; −inf itself. Several in one step of a Loop: a step
# costs ONNX Runtime more than its operators.
_PICK_ONE = """
<domain: "rediprune", opset_import: ["" : 20]>
PickOne (ceiling, score) => (next_score, place, best)
{
    place = ArgMax <axis = 0, keepdims = 1> (score)
    best = Gather (score, place)
    left_at_most = GatherND (ceiling, place)
    next_score = Min (score, left_at_most)
}
"""

# owed [F]: how many tokens each frame is still short of its least.
_SELECT_CLIP = Template("""
<ir_version: 10, opset_import: ["" : 20, "rediprune" : 1]>
select_clip ($dtype[F, P, $channels] features, $dtype[L, $depth] text_embeds, int64 num_keep, float alpha,
    int64 min_per_frame, float threshold$inputs) => (int64[K] indices, $dtype[K, $channels] kept)
{
    $constants
    $query
    $unit_tokens
    $fingerprint

    # All frames as one row of tokens.
    yes = Constant <value = bool {1}> ()
    no = Constant <value = bool {0}> ()
    four = Constant <value_int: int = 4> ()
    minus_one = Constant <value_int: int = -1> ()
    low_1 = Unsqueeze (low, axis0)
    row_shape = Constant <value_ints: ints = [-1]> ()
    grid = Shape (relevance)
    frames = Gather (grid, zero)
    patches = Gather (grid, one)
    relevances = Reshape (relevance, row_shape)
    fingerprints = Reshape (fingerprint, row_shape)
    number = Size (relevances)
    all_tokens = Unsqueeze (number, axis0)
    tokens_index = Range (zero, number, one)
    frame_of = Div (tokens_index, patches)
    unit_shape = Shape (visual_unit)
    unit_width = Gather (unit_shape, two)
    unit_width_1 = Unsqueeze (unit_width, axis0)
    flat_shape = Concat <axis = 0> (all_tokens, unit_width_1)
    unit = Reshape (visual_unit, flat_shape)

    # Of each token the first that is identical to it: sorted by fingerprint and then relevance they are neighbours.
    by_relevance_values, by_relevance = TopK <axis = 0> (relevances, all_tokens)
    prints_by_relevance = Gather (fingerprints, by_relevance)
    sorted_prints, by_print = TopK <axis = 0> (prints_by_relevance, all_tokens)
    order = Gather (by_relevance, by_print)
    rank_before = Sub (tokens_index, one)
    before_rank = Max (rank_before, zero)
    order_before = Gather (order, before_rank)
    print_before = Gather (sorted_prints, before_rank)
    relevance_here = Gather (relevances, order)
    relevance_before = Gather (relevances, order_before)
    has_before = Greater (tokens_index, zero)
    is_zeroth = Not (has_before)
    same_print = Equal (sorted_prints, print_before)
    same_relevance = Equal (relevance_here, relevance_before)
    same_sums = And (same_print, same_relevance)
    compared = Or (same_sums, is_zeroth)
    compared_at = NonZero (compared)
    compared_1 = Reshape (compared_at, row_shape)
    compared_here = Gather (order, compared_1)
    compared_before = Gather (order_before, compared_1)
    unit_here = Gather (unit, compared_here)
    unit_before = Gather (unit, compared_before)
    neighbours = Mul (unit_here, unit_before)
    neighbour_cosine = ReduceSum <keepdims = 0> (neighbours, last_axis)
    bound = Constant <value_float: float = $bound> ()
    same_direction = Greater (neighbour_cosine, bound)
    none_same = Expand (no, all_tokens)
    same_as = ScatterElements <axis = 0> (none_same, compared_1, same_direction)
    repeats = And (same_as, has_before)
    begins = Not (repeats)
    begins_i = Cast <to = 7> (begins)
    runs = CumSum (begins_i, zero)
    run = Sub (runs, one)
    unset = Expand (number, all_tokens)
    heads = ScatterElements <axis = 0, reduction = "min"> (unset, run, order)
    first_of_run = Gather (heads, run)
    first = ScatterElements <axis = 0> (order, order, first_of_run)

    # The first pick is the most relevant token; nothing is known of the others before it.
    pull = Mul (relevances, alpha)
    each = Min (num_keep, patches)
    total = Mul (each, frames)
    high = Constant <value = float {inf}> ()
    unseen = Expand (high, all_tokens)
    frames_1 = Unsqueeze (frames, axis0)
    at_most_each = Min (min_per_frame, each)
    least = Expand (at_most_each, frames_1)
    most_relevant = ArgMax <axis = 0, keepdims = 1> (relevances)
    first_near = rediprune.AddPicks (unit, first, unseen, most_relevant)
    first_frame = Gather (frame_of, most_relevant)
    owed_there = Gather (least, first_frame)
    less_owed = Sub (owed_there, one)
    first_owed = ScatterElements <axis = 0> (least, first_frame, less_owed)
    first_ends, first_spent = rediprune.IsSpent (first_near, pull, threshold, first_owed)
    is_one = Equal (total, one)
    none_left = Or (is_one, first_ends)
    begins_blocks = Not (none_left)

    # Blocks of picks. Of the best tokens, the candidates, similarities to one another are known; as long as the best of them
    # is above all that the others can have, whose scores only fall, it is the best of all. Then the block's picks are added
    # to every token at once: one product of matrices in place of one with a vector for each pick. Candidates are in
    # ascending order, so that ties go to the lowest index. While more is left than owed and the threshold is not reached (`opens`)
    # all frames may have tokens, and a block ends before that could change; later only those that are owed some.
    most = Constant <value_int: int = $candidates> ()
    width = Constant <value_ints: ints = [32]> ()
    next_most = Add (most, one)
    looked_at = Min (next_most, number)
    looked_at_1 = Unsqueeze (looked_at, axis0)
    most_or_all = Min (most, number)
    candidates_1 = Unsqueeze (most_or_all, axis0)
    near_end, owed_end, made_end, spent_end = Loop (total, begins_blocks, first_near, first_owed, one, first_spent) <body = block
        (int64 block_number, bool going, float[N] near, int64[F] owed, int64 made, bool spent)
        => (bool go_on, float[N] near_out, int64[F] owed_out, int64 made_out, bool spent_out)
        {
            score = Add (near, pull)
            debt = ReduceSum <keepdims = 0> (owed)
            left = Sub (total, made)
            spare = Sub (left, debt)
            has_spare = Greater (spare, zero)
            gained = Not (spent)
            opens = And (gained, has_spare)
            forced = Min (left, debt)
            steps_left = Where (opens, spare, forced)
            is_owed = Greater (owed, zero)
            may_frame = Or (is_owed, opens)
            may = Gather (may_frame, frame_of)
            eligible = Where (may, score, low)
            top_scores, top = TopK <axis = 0> (eligible, looked_at_1)
            padded_scores = Concat <axis = 0> (top_scores, low_1)
            rest = Gather (padded_scores, most_or_all)
            best_tokens = Slice (top, axis0, candidates_1, axis0)
            candidates, candidates_order = TopK <axis = 0, largest = 0, sorted = 1> (best_tokens, candidates_1)
            candidate_eligible = Gather (eligible, candidates)
            candidate_first = Gather (first, candidates)
            candidate_unit = Gather (unit, candidate_first)
            candidate_unit_t = Transpose <perm = [1, 0]> (candidate_unit)
            product = MatMul (candidate_unit, candidate_unit_t)
            at_most_one = Min (product, whole)
            first_column = Unsqueeze (candidate_first, axis1)
            first_row = Unsqueeze (candidate_first, axis0)
            is_same = Equal (first_column, first_row)
            is_same_i = Cast <to = 7> (is_same)
            same_place = ArgMax <axis = 1, keepdims = 0> (is_same_i)
            of_rows = Gather <axis = 0> (at_most_one, same_place)
            # Columns through a transpose: a Gather of columns copies one number at a time.
            of_rows_t = Transpose <perm = [1, 0]> (of_rows)
            of_first_t = Gather <axis = 0> (of_rows_t, same_place)
            of_first = Transpose <perm = [1, 0]> (of_first_t)
            similarity = Where (is_same, whole, of_first)
            distance = Sub (whole, similarity)
            candidate_pull = Gather (pull, candidates)
            pulled = Add (distance, candidate_pull)
            own_column = Unsqueeze (candidates, axis1)
            own_row = Unsqueeze (candidates, axis0)
            is_itself = Equal (own_column, own_row)
            ceiling = Where (is_itself, low, pulled)
            candidate_frame = Gather (frame_of, candidates)
            steps_padded = Add (steps_left, three)
            rounds = Div (steps_padded, four)
            last_score, place_rows, score_rows = Loop (rounds, yes, candidate_eligible) <body = pick_four
                (int64 step, bool picking, float[M] c_score)
                => (bool pick_on, float[M] next_score, int64[4] four_places, float[4] four_scores)
                {
                    score_1, place_0, best_0 = rediprune.PickOne (ceiling, c_score)
                    score_2, place_1, best_1 = rediprune.PickOne (ceiling, score_1)
                    score_3, place_2, best_2 = rediprune.PickOne (ceiling, score_2)
                    next_score, place_3, best_3 = rediprune.PickOne (ceiling, score_3)
                    four_places = Concat <axis = 0> (place_0, place_1, place_2, place_3)
                    four_scores = Concat <axis = 0> (best_0, best_1, best_2, best_3)
                    lowest = ReduceMin <keepdims = 0> (four_scores)
                    pick_on = Greater (lowest, rest)
                }>
            places_all = Reshape (place_rows, row_shape)
            scores_all = Reshape (score_rows, row_shape)
            steps_left_1 = Unsqueeze (steps_left, axis0)
            places = Slice (places_all, axis0, steps_left_1, axis0)
            scores = Slice (scores_all, axis0, steps_left_1, axis0)
            # Picks after the first end where the others can have as much, where a gain is too small, or where a frame that
            # is owed some has all of them: the first such pick and what follows it is for the next block.
            places_frame = Gather (candidate_frame, places)
            frame_column = Unsqueeze (places_frame, axis1)
            frame_row = Unsqueeze (places_frame, axis0)
            in_frame = Equal (frame_column, frame_row)
            in_frame_i = Cast <to = 7> (in_frame)
            so_far = Trilu <upper = 0> (in_frame_i)
            nth_of_frame = ReduceSum <keepdims = 0> (so_far, axis1)
            frame_owed = Gather (owed, places_frame)
            room = Where (opens, left, frame_owed)
            fits = LessOrEqual (nth_of_frame, room)
            least_gain = Where (opens, threshold, low)
            gains = GreaterOrEqual (scores, least_gain)
            is_best_of_all = Greater (scores, rest)
            fits_and_gains = And (fits, gains)
            stands = And (fits_and_gains, is_best_of_all)
            stands_i = Cast <to = 7> (stands)
            stands_ended = Concat <axis = 0> (stands_i, axis0)
            standing = ArgMin <axis = 0, keepdims = 1> (stands_ended)
            # Of 32 or more picks a multiple of 32, the rest for the next block: one more column costs as much as 16.
            whole_widths = Div (standing, width)
            at_whole_width = Mul (whole_widths, width)
            is_wide = Greater (at_whole_width, axis0)
            at_width = Where (is_wide, at_whole_width, standing)
            pick_count = Max (at_width, axis1)
            standing_places = Slice (places, axis0, pick_count, axis0)
            picks = Gather (candidates, standing_places)
            pick_frames = Gather (frame_of, picks)
            picks_shape = Shape (picks)
            minus_each = Expand (minus_one, picks_shape)
            owed_less = ScatterElements <axis = 0, reduction = "add"> (owed, pick_frames, minus_each)
            owed_out = Max (owed_less, zero)
            near_out = rediprune.AddPicks (unit, first, near, picks)
            picks_made = Size (picks)
            made_out = Add (made, picks_made)
            ends, spent_out = rediprune.IsSpent (near_out, pull, threshold, owed_out)
            is_full = GreaterOrEqual (made_out, total)
            stops = Or (is_full, ends)
            go_on = Not (stops)
        }>
    is_picked = IsInf <detect_positive = 0> (near_end)
    picked_at = NonZero (is_picked)
    indices = Reshape (picked_at, row_shape)
    channels_shape = Shape (features)
    channels = Gather (channels_shape, two)
    channels_1 = Unsqueeze (channels, axis0)
    feature_shape = Concat <axis = 0> (all_tokens, channels_1)
    flat_features = Reshape (features, feature_shape)
    kept = Gather (flat_features, indices)
}
""")


def select_clip_model(
    channels: int, depth: int, dtype: np.dtype | type = np.float32, candidates: int = CANDIDATES
) -> ir.Model:
    """The `select_clip` stage: one budget over all frames, and an end where no token gains enough.

    Inputs: features [F,P,C], text_embeds [L,D], num_keep (tokens of each frame on average), alpha, min_per_frame (at least 1;
    above num_keep it counts as that), threshold (−inf: none). Outputs: indices [K] int64 ascending, frame · P + patch, and kept [K,C]. Scores are
    float32 whatever `dtype` (float32 or float16) the features have. Equal to `pool_query` followed by `select_clip_tokens`.

    Args:
        channels: C, width of the vision tower's features.
        depth: D, width of the language model's embeddings.
        dtype: of features, text_embeds and kept.
        candidates: how many of the best tokens are compared with one another at once; the choice is the same for any.
    """
    model = model_of_text(_SELECT_CLIP, channels, depth, dtype, candidates=candidates)
    for text in (_ADD_PICKS, _IS_SPENT, _PICK_ONE):
        function = ir.from_proto(onnx.parser.parse_function(text))
        model.functions[function.identifier()] = function
    RemoveUnusedNodesPass()(model)  # constants of the shared lines that are not used here
    return model
