"""The bundle beside what a user would take instead: same checkpoint, picture, prompt and machine, taking turns.

run.py         the measurement: turns, medians, the document
contenders.py  who takes part, and the process each turn is
turn.py        what happens in that process
ours.py · eager.py · exported.py · genai.py · llama.py   the contenders
answering.py   what those that answer in torch share
converted.py   what the last three read, made once
ceilings.py    what the machine can do · work.py  what the model asks of it
growth.py      how cost grows with frames, kept tokens and prompt
table.py · plots.py · page.py   the outcome for people
"""
