"""Bundles beside what a user would take instead: same checkpoint, picture, prompt and machine, taking turns.

A contender is whoever is measured: a bundle on a backend, or a peer, which is another tool with the same checkpoint.

bench.py           the measurement: turns, then the document
bench_settings.py  what is measured and how
contenders.py      who takes part, and the process that each turn is
turn.py            what happens in that process
bench_rows.py      medians, rates and speed-ups of the turns
roofline.py        what the machine can do
multiply_adds.py   what the model asks of it
paper_accounting.py  operations and times as the paper counts and takes them
scaling.py         how time grows with frames, kept tokens and prompt
bench_table.py · bench_plots.py · bench_page.py   the outcome for people
bench_export.py · bench_export_open.py            what exporting a large checkpoint takes
peers/             the contenders' own code
gpu/               programs for machines with a GPU
"""
