"""The embedded base: a small Stable Diffusion of an emoji world, and the code that makes it.

`world` says what exists there, `icons` fetches its images, `paint` and `backgrounds` vary them, `scenes` composes
and captions them; `autoencoder` and `diffusion` train the model's parts, `export` writes assets/emoji-sd, `subjects`
makes the images it is personalized on. `python -m emoji_world --help` lists the commands in that order.
"""
