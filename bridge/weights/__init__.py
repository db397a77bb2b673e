"""Published weights: reading checkpoints safely, and their names and layouts as ours.

`kinds` is the table of what can be converted; a row names the file of the kind that it describes.
"""
