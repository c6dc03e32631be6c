"""What a program holds in memory: its tensors, counted one by one, and what the system says of the whole process."""

import gc
import json
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MIB = 2**20


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of all tensors that were made inside and are still there; `peak` is the most there ever were.

    The same program gives the same number on every machine. Views and what was there before cost nothing. What an
    operation takes and gives back within itself is not seen, nor are arrays of numpy: `Anonymous` sees these.
    """

    def __init__(self):
        super().__init__()
        self.bytes = self.peak = 0
        self._known = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        arguments = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        given = {each.untyped_storage()._cdata for each in arguments}
        result = function(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, torch.Tensor):
                storage = each.untyped_storage()
                if storage._cdata not in given and storage._cdata not in self._known:
                    self._note(storage)
        return result

    def _note(self, storage):
        key, size = storage._cdata, storage.nbytes()

        def gone(_):
            self.bytes -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, gone)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)


def anonymous():
    """Bytes of this process that no file stands behind: all it has allocated and touched, without what is mapped."""
    return _status("RssAnon")


class Anonymous:
    """The most that `anonymous()` grows by inside: `growth`, looked at every five milliseconds. Linux only."""

    def __enter__(self):
        gc.collect()
        self._before = self._peak = anonymous()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self):
        while not self._done.wait(0.005):
            self._peak = max(self._peak, anonymous())

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()

    @property
    def growth(self):
        return max(self._peak, anonymous()) - self._before


def peak_of(work):
    """Bytes by which `work()` raises what this process has in memory at most, as the kernel notes it. Linux only."""
    gc.collect()
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")  # the peak so far is forgotten
    before = _status("VmHWM")
    work()
    return _status("VmHWM") - before


def _status(key):
    with open("/proc/self/status", encoding="ascii") as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith(f"{key}:"))


def things():
    """How many tensors there are, and how many objects that the garbage collector knows."""
    gc.collect()
    found = gc.get_objects()
    return sum(issubclass(type(each), torch.Tensor) for each in found), len(found)


def in_a_process(program, *arguments, exact=True):
    """What a program prints as JSON in its last line, run by a Python of its own beside these tests.

    If `exact`, the allocator returns what is larger than 256 KiB at once, so that what the process has is what it uses;
    that takes time.
    """
    allocator = {"MALLOC_ARENA_MAX": "1", **({"MALLOC_MMAP_THRESHOLD_": str(MIB // 4)} if exact else {})}
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-W", "error", "-c", program, *map(str, arguments)]
    env = {**os.environ, **allocator, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])
