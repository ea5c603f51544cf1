"""Proof: what a bundle computes beside the checkpoint in eager PyTorch, stage by stage and end to end.

validate.py               the whole check
cases.py                  what is compared: inputs and what eager PyTorch gives for them
stage_inputs.py           inputs for every stage
eager_cases.py            eager PyTorch over these inputs, and over whole requests
eager_reference.py        whole requests in transformers, pruned by `select_tokens`
stored_cases.py           the cases on disk, computed once
stage_comparison.py       a stage beside eager PyTorch, and its tolerance
end_to_end_comparison.py  an answer beside eager PyTorch's
validation_report.py      the outcome
polygraphy_files.py       a stage's inputs and expected outputs as `polygraphy run` reads them
sample_media.py           a picture and a clip to ask about
"""
