"""The order of a program's warps at global memory, in the GPU code that Triton has made.

A program's warps run on their own between two barriers. Where one of them reads or writes an element that another
writes, with no barrier between, the result is left to chance. `ttsem.races` looks for this in shared memory; here its
interpreter also keeps the loads and stores of global memory, each warp's by the layout of its tensor: a number that is
no tensor is loaded by every warp, and stored by the first.
"""

import contextlib
import tempfile
from unittest import mock

import numpy as np
from triton._C.libtriton import ir, nvidia, passes
from triton.compiler import make_backend
from triton.runtime.jit import JITFunction
from ttsem import harness, mlir, races, validate

GLOBAL = {"tt.load": "r", "tt.store": "w"}


class WarpOrder(races.RaceInterp):
    """Runs the programs of a launch one after the other, and keeps in `races` what their warps leave to chance."""

    def __init__(self, module, memory, programs, warps):
        super().__init__(module, memory, programs, warps, 32)
        self.step_budget = 1 << 40
        self.touched = 0  # elements of global memory, of all warps

    def run(self, name, arguments, program_id=(0, 0, 0)):
        self.epoch[0] += 1  # nothing orders two programs: those are ttsem.sanitize's concern
        return super().run(name, arguments, program_id)

    def eval_op(self, op):
        arguments = [self.value(name) for name in op.operands]
        super().eval_op(op)
        kind = GLOBAL.get(op.name)
        if kind is not None:
            self.instance += 1
            self._keep(op, kind, np.asarray(arguments[0]), _mask(op, kind, arguments))

    def _own_copy(self, before, after):
        """That a warp has read an element itself orders nothing between its write and the reads of the others."""
        return False

    def _keep(self, op, kind, addresses, mask):
        pointers = op.operand_types[0]
        itemsize = np.dtype(races.to_numpy((pointers.elem if pointers.shape else pointers).elem)).itemsize
        for warp in range(self.num_warps):
            places = self.warp_coords(pointers, warp) if addresses.shape else None
            if addresses.shape and places is None:
                raise ValueError(f"no layout can be read of {pointers.name}: {self.layout_gaps}")
            if not addresses.shape and kind == "w" and warp > 0:
                return
            own = addresses[tuple(places)] if places is not None else addresses.reshape(1)
            own = np.unique(own[np.broadcast_to(mask, addresses.shape)[tuple(places)] if places is not None else mask])
            if own.size:
                self.touched += own.size
                self._log(op, kind, warp, (own[:, None] + np.arange(itemsize)).reshape(-1))

    def _log(self, op, kind, warp, addresses):
        self.log(races.Access(0, f"w{warp}", kind, addresses, self.epoch[0], op.text or op.name))


def _mask(op, kind, arguments):
    position = 1 if kind == "r" else 2
    given = len(arguments) > position
    return np.asarray(arguments[position], bool) if given else np.ones((), bool)


@contextlib.contextmanager
def recorded():
    """The launches of a block, inside of a session of `ttsem.sanitize`."""
    records, run = [], JITFunction.run

    def record(self, *arguments, grid, warmup, **options):
        records.append(harness.record_launch(self, arguments, options, grid, run, __file__, len(records)).record)

    with mock.patch.object(JITFunction, "run", record):
        yield records


def stages(record, capability):
    """(pass, module) before each pass of the compiler, from the launch to the conversion to LLVM."""
    dump = harness.dump_for_launch(record, harness.target_for("cpu", capability))
    return [(name, text) for name, text in validate.split_dump(dump) if "llvm.func" not in text]


def last_module(record, capability):
    """What the conversion to LLVM receives, but for passes that change neither layouts nor shared memory."""
    mlir.enable_generic_printing()
    target = harness.target_for("cpu", capability)
    context = ir.context()
    ir.load_dialects(context)
    make_backend(target).load_dialects(context)
    with tempfile.NamedTemporaryFile("w", suffix=".ttgir") as file:
        file.write(harness._stage_text(record, "ttgir", target))
        file.flush()
        module = ir.parse_mlir_module(file.name, context)
    manager = ir.pass_manager(context)
    passes.ttgpuir.add_allocate_warp_groups(manager, False)
    nvidia.passes.ttgpuir.add_allocate_shared_memory_nv(manager, capability, 80)
    manager.run(module, "shared_memory")
    return mlir.to_generic(str(module))


def order_of(record, module):
    """The interpreter after a run of the launch's module on what its tensors held before."""
    made = []

    def interpreter(parsed, memory, programs):
        made.append(WarpOrder(parsed, memory, programs, races.launch_config(module)[0]))
        return made[0]

    with mock.patch.object(harness, "Interp", interpreter):
        execution = harness.execute(record, module)
    if execution.failure is not None:
        raise ValueError(f"{record.fn_name} did not run: {execution.failure.verdict} {execution.failure.message}")
    return made[0]


def lines(found):
    """Where the two sides of each race are in the sources, without repetition."""
    places = {tuple(sorted(_place(side.op) for side in (race.first, race.second))) for race in found}
    return sorted(places)


def _place(text):
    start = text.rfind("loc(")
    return text[start:] if start >= 0 else text[:80]
