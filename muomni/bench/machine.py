"""What machine this is, in the words of a report."""

import platform

import torch

from muomni.accel.device import pick_device
from muomni.accel.machine import cores, processor
from muomni.bench.report import Machine


def this_machine() -> Machine:
    """The device that a run takes by itself, and what it is."""
    device = pick_device()
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    else:
        import psutil

        memory = psutil.virtual_memory().total
    return Machine(
        device=device.type,
        processor=processor(device),
        cores=cores(),
        threads=torch.get_num_threads(),
        memory_mib=memory / 2**20,
        system=f"{platform.system()} {platform.machine()}",
    )
