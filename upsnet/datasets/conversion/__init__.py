"""Labels of other formats -> the COCO panoptic format. One reader for each format makes a `Source` (labels.py); the
rest is the same for all: the table of classes (table.py), painting (regions.py, compose.py), writing (convert.py).
"""
