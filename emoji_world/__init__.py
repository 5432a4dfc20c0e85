"""The code that makes the embedded base: a small Stable Diffusion of an emoji world.

`world` lists the things, `icons` fetches their images, `paint` and `backgrounds` vary them, `scenes` composes and
captions them. `autoencoder` and `diffusion` train the model's parts, `export` writes assets/emoji-sd. `subjects` and
`control_pairs` render data to train on; `judge` and `score` measure. `python -m emoji_world --help` lists the commands
in order.
"""
