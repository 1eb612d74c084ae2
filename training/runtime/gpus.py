"""The GPUs of this machine: whether this build of torch has code for them, and whether a launch leaves some idle."""

import torch

from training.runtime.errors import InputError
from training.runtime.threads import local_processes


def check_gpus(count: int) -> None:
    """Raise an `InputError` if this build of torch has no code for one of the first `count` GPUs.

    Without this, torch warns, and the first kernel fails.
    """
    for index in range(min(count, torch.cuda.device_count())):
        if missing := missing_code(index):
            raise InputError(f"{missing}, or choose other GPUs by CUDA_VISIBLE_DEVICES")


def missing_code(index: int) -> str | None:
    """What this build of torch lacks for a GPU, with the command that installs one which does not; else None.

    The rule is NVIDIA's, and torch's own (`_check_cubins`): code for sm_XY runs where X is the same and Y not smaller;
    compute_XY is compiled anew for every later GPU.
    """
    # A build for AMD names no such architectures.
    built = torch.cuda.get_arch_list() if torch.version.cuda else []
    capability = torch.cuda.get_device_capability(index)
    if not built or any(_runs_on(architecture, capability) for architecture in built):
        return None
    # CUDA 13 left out what is older than sm_75.
    return (
        f"{torch.cuda.get_device_name(index)} is sm_{capability[0]}{capability[1]}, and torch {torch.__version__} is "
        f"built for {' '.join(built)}: {install_torch('cu130' if capability >= (7, 5) else 'cu126')}"
    )


def install_torch(build: str) -> str:
    """The command that installs this version of torch in another build."""
    version = torch.__version__.partition("+")[0]
    return f"pip install torch=={version}+{build} --index-url https://download.pytorch.org/whl/{build}"


def _runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether code for an architecture, as torch writes it (sm_86, sm_90a, compute_120), runs on a GPU."""
    kind, _, number = architecture.partition("_")
    major, minor = divmod(int(number.rstrip("af")), 10)
    return (major, minor) <= capability and (kind == "compute" or major == capability[0])


def idle_gpus_warning(num_processes: int) -> str | None:
    """A line to print when this machine has GPUs that the launch does not use, or None."""
    total, used = torch.cuda.device_count(), local_processes()
    if not torch.cuda.is_available() or not num_processes <= used < total:
        return None
    launch = f"accelerate launch --multi_gpu --num_processes {total} …"
    return f"{total - used} of {total} GPUs stand idle; to use them all: {launch}"
