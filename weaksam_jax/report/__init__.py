"""The self-contained HTML report of a run, and the pictures that other commands draw.

`page` writes the report and `gallery` its rows as one PNG, from what `artefacts` reads: `panels`
has the pictures of one image, `curves` and `tables` the figures, `choose` which images are shown.
`draw` paints boxes, points, maps and masks on photos, `contact_sheet` puts pictures in rows,
`proposal_pictures` shows proposals.
"""
