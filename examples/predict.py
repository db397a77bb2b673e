"""What is in a photo: `python examples/predict.py RUN PHOTO`, RUN being a run folder or a weights
file. Prints class, score, box and pixels of the mask of everything that is found."""

import sys

import weaksam_jax

detector = weaksam_jax.load(sys.argv[1], threshold=0.3)
found = detector(sys.argv[2])
for i, name in enumerate(found.names):
    pixels = "" if found.masks is None else f"  {found.masks[i].sum()} pixels"
    print(f"{name}  {found.scores[i]:.2f}  {found.boxes[i].round(1).tolist()}{pixels}")
