"""How good an adapter is, in numbers with intervals: the same code for the embedded judge, CLIP and DINO.

`encoders` turns images and words into unit vectors, `scores` compares them, `bootstrap` says how sure a number is,
`drawing` draws what is compared, `evaluation` measures it and `report` writes it down.
"""
