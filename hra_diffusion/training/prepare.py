"""Settings → a run that is ready to start: inputs read, model loaded, adapter added, everything checked."""

from hra_diffusion.formats.files import check_writable
from hra_diffusion.pipelines import adapted_components
from hra_diffusion.pipelines.bases import PRECISIONS, decode_one_by_one
from hra_diffusion.training.config.init_adapter import initial_parts
from hra_diffusion.training.devices.unseen import warn_of_unseen_gpu
from hra_diffusion.training.families import load
from hra_diffusion.training.loop.optimizers import check_optimizer
from hra_diffusion.training.loop.subspaces import check_start, read_reservation, subspaces_of
from hra_diffusion.training.outputs.checkpoint import find_checkpoint, read_progress
from hra_diffusion.training.outputs.lock import check_unlocked
from hra_diffusion.training.outputs.resuming import check_fingerprint, fingerprint
from hra_diffusion.training.outputs.trackers import choose_tracker, logging_folder
from hra_diffusion.training.run import Run, recorded_settings
from hra_diffusion.training.setup import add_adapters, make_accelerator
from hra_diffusion.training.task import Plan, Task


def prepare_run(task: Task) -> Run:
    """Check the settings, read the inputs, load the model and add the adapter; writes nothing.

    (A control's ``--dataset_name`` is imported into a folder.)

    Raises:
        HRAError: the settings, the inputs, the model, the output folder or the checkpoint cannot be used.
    """
    accelerator = make_accelerator(task.config.run)
    warn_of_unseen_gpu(accelerator.device)
    task.read_inputs(accelerator)
    reservation = read_reservation(task.config.adapter)
    family = load(task.config.model, PRECISIONS[task.config.run.mixed_precision])
    decode_one_by_one(family.pipe, accelerator.device)
    task.plan(family, accelerator.num_processes)
    config = task.config
    add_adapters(family, config.adapter, config.model, config.run, accelerator.device, initial_parts(config))
    subspaces = subspaces_of(reservation, adapted_components(family.pipe)) if reservation else {}
    check_start(subspaces, config.adapter.init_adapter)
    task.add_modules(family)
    tracker = choose_tracker(config.run.report_to)
    family.noise_process(config.objective.flow_shift)
    check_optimizer(config.optimizer)
    run_fingerprint = fingerprint(config, task.digests(), family.pipe, accelerator.num_processes)
    assert config.run.output_dir and config.run.max_train_steps
    if accelerator.is_main_process and not config.run.dry_run:
        check_unlocked(config.run.output_dir)
    if tracker == "tensorboard":
        check_writable(logging_folder(config.run.output_dir, config.run), "--logging_dir")
    resume = config.run.resume_from_checkpoint
    checkpoint = find_checkpoint(resume, config.run.output_dir) if resume else None
    if checkpoint:
        check_fingerprint(checkpoint, run_fingerprint, config.run.max_train_steps)
    run = Run(
        plan=Plan(
            config=config,
            fingerprint=run_fingerprint,
            checkpoint=checkpoint,
            initial_global_step=read_progress(checkpoint)[0] if checkpoint else 0,
        ),
        task=task,
        family=family,
        accelerator=accelerator,
        validation=task.validation(),
        subspaces=subspaces,
    )
    recorded_settings(run.config)
    run.check_disk_space()
    return run
