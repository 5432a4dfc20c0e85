"""The end of a training job's output and its memory, as HTML."""

import html

from hra_diffusion.studio.engine.training.job import Job
from hra_diffusion.studio.engine.training.job_output import job_memory, log_tail
from hra_diffusion.studio.tabs.common import note, strip_folders


def job_log(job: Job) -> str:
    """Return the HTML of the last lines of a job's output, and of the memory in use while it is running."""
    lines = "\n".join(log_tail(job.folder))
    text = html.escape(strip_folders(lines)) or "No output yet."
    return f'{note(_memory(job))}<pre class="log" tabindex="0" aria-label="Log">{text}</pre>'


def _memory(job: Job) -> str:
    memory = job_memory(job.folder)
    if memory is None:
        return ""
    text = f"Memory of the job: {memory.process / 1e9:.1f} GB"
    if memory.device:
        used, total = memory.device
        text += f" · GPU: {used / 1e9:.1f} of {total / 1e9:.1f} GB in use"
    return text
