"""The API: named endpoints that return data. The page has listeners of its own, in `tabs`."""

import gradio as gr

from hra_diffusion.studio.api.image_store import expose_image_store
from hra_diffusion.studio.api.images import expose_images
from hra_diffusion.studio.api.library import expose_library
from hra_diffusion.studio.api.presets import expose_presets
from hra_diffusion.studio.api.queue import expose_queue
from hra_diffusion.studio.api.training import expose_training
from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.tabs.settings import Settings
from hra_diffusion.studio.tabs.training_fields import TrainingFields

__all__ = ["build_api"]


def build_api(session: Session, settings: Settings, training: TrainingFields) -> None:
    """Add the endpoints to the page, within its ``with`` block.

    Args:
        session: the studio's session.
        settings: the settings of Generate, whose values are the defaults of the parameters.
        training: the fields of a training job, likewise.
    """
    with gr.Column(visible=False):  # the components of parameters and results that the page does not display
        expose_images(session, settings)
        expose_queue(session, settings)
        expose_image_store(session)
        expose_presets(session, settings)
        expose_training(session, training)
        expose_library(session, settings)
