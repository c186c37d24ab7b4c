"""Photos by the million: a list of them becomes blocks, each block one file, which is there or not.

photo_list.py  the list, and the blocks that it is cut into
plan.py        what a run is: OUT/plan.json, held against every later run
pipeline.py    photos in, rows out: read ahead, computed, encoded, in order
block.py       one block: rows into a file, whose name follows from its number
tar.py, parquet.py  the two formats of that file
report.py      OUT/report.json and failed.jsonl, from the blocks
output.py      reading it all back
command.py     `upsnet predict --photos-from`
"""
