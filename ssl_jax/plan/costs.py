"""What one step of a compiled program does on each device: collectives, memory traffic, matrix products, fused kernels."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping

from ssl_jax.plan.hlo import Instruction, Module

START = '"AsyncCollectiveStart"'  # a TPU's custom call in the fusion that begins a collective
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
# No bytes move, or they are counted where the operation starts.
FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id", "iota",
        "opt-barrier", "optimization-barrier", "domain", "add-dependency", "async-done", "async-update")  # fmt: skip
SLICES = ("dynamic-slice", "slice", "gather")
MOVES = ("get-tuple-element", "bitcast", "copy", "copy-start", "copy-done", "convert", "reshape", "transpose")


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective of one step.

    bytes: of the array that is summed, gathered or exchanged, whole, on one device and in one execution. `group` devices take
    part. count: executions a step; loops: iterations of the loops around it, outermost first. `slices`: each iteration of the
    innermost loop has its own slice of a larger array, such as one block's parameters of a stack.
    """

    kind: str
    shape: str
    bytes: int
    group: int
    count: int
    loops: tuple[int, ...]
    op_name: str
    slices: bool = False

    @property
    def repeats(self) -> int:
        """Executions a step of the same array."""
        return self.count // self.loops[-1] if self.slices and self.loops else self.count

    @property
    def total(self) -> int:
        """Bytes a step."""
        return self.bytes * self.count

    @property
    def sent(self) -> float:
        """Bytes a step that one device sends in a ring: 2 (n - 1) / n of the array to sum it, half of that to gather it."""
        share = (self.group - 1) / self.group
        return self.total * {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)


def collectives(module: Module) -> list[Collective]:
    """Return the collectives of one step, those over several devices."""
    found, seen, begun = [], set(), set()
    for run in module.walk():
        held = [(run.instruction, None)]
        if run.instruction.opcode == "fusion":
            held = [(inner, name) for name, inner in module.inside(run.instruction)]
        begins = any(START in one.attributes for one, name in held if name is not None)
        for instruction, inside in held:
            kind = instruction.opcode.removesuffix("-start")
            if kind not in KINDS or not instruction.shapes:
                continue
            shapes = tuple(map(str, instruction.shapes))  # without memory spaces, in which phases differ
            phase = (instruction.attribute(r"channel_id=(\d+)"), run.times, kind, shapes)
            if inside is not None and (phase in seen or (phase[0] in begun and not begins)):
                continue  # one collective whose phases are in several fusions, perhaps in a loop that it overlaps with
            seen.add(phase)
            if begins:
                begun.add(phase[0])
            group = group_size(instruction, module.partitions)
            if group < 2:
                continue
            largest = max(instruction.shapes, key=lambda shape: shape.bytes)
            size = largest.bytes
            if kind == "all-reduce":
                size = sum(shape.bytes for shape in instruction.shapes)
            elif kind == "reduce-scatter":
                size = sum(shape.bytes for shape in instruction.shapes) * group
            if kind == "all-reduce" and inside is not None and "all-reduce-scatter" in inside:  # a TPU's reduce-scatter
                kind = "reduce-scatter"
            slices = bool(run.loops) and reads_slice(module, run.computation, run.instruction)
            found.append(Collective(kind, str(largest), size, group, run.times, run.loops, instruction.op_name, slices))
    return found


def reads_slice(module: Module, computation: str, instruction: Instruction, steps: int = 6) -> bool:
    """Whether what an instruction reads was cut out of a larger array, at most so many operations before it."""
    body = module.computations[computation]
    for name in instruction.operands if steps else ():
        one = body.get(name)
        if one is None or one.opcode not in ("fusion", "dynamic-slice", *MOVES):
            continue
        inner = [inside.opcode for _, inside in module.inside(one)] if one.opcode == "fusion" else [one.opcode]
        if "dynamic-slice" in inner or reads_slice(module, computation, one, steps - 1):
            return True
    return False


def group_size(instruction: Instruction, partitions: int) -> int:
    """Return how many devices exchange data with each other."""
    text = instruction.attribute(r"replica_groups=(.*?)(?:, [a-z_\-]+=|$)") or ""
    if text.startswith("{{"):
        return len(re.match(r"\{\{([\d,]*)\}", text).group(1).split(","))  # type: ignore[union-attr]
    iota = re.match(r"\[(\d+),(\d+)\]<=", text)
    if iota:
        return int(iota.group(2))
    if text.startswith("mesh["):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", text))
        names = re.findall(r"'(\w+)'", text.partition("]")[2])
        return math.prod(int(sizes.get(name, 1)) for name in names)
    return partitions


def by_kind(found: Iterable[Collective]) -> dict[str, dict[str, float]]:
    """Return {kind: {"count", "bytes", "sent"}} of a step."""
    sums: dict[str, dict[str, float]] = {}
    for one in found:
        entry = sums.setdefault(one.kind, {"count": 0, "bytes": 0, "sent": 0.0})
        entry["count"] += one.count
        entry["bytes"] += one.total
        entry["sent"] += one.sent
    return sums


def traffic(module: Module) -> int:
    """Return the bytes that one device reads from and writes to its main memory in one step.

    Of an array that an operation reads in slices, or updates in place, only what is read or written counts. Arrays in a TPU's
    on-chip memory do not.
    """
    total = 0
    for run in module.walk():
        instruction = run.instruction
        if instruction.opcode in FREE or instruction.opcode.endswith("-done") or "AllocateBuffer" in instruction.attributes:
            continue
        total += run.times * moved(module, run.computation, instruction)
    return total


def moved(module: Module, computation: str, instruction: Instruction) -> int:
    """Return the bytes that one execution of an instruction reads and writes."""
    body = module.computations[computation]
    given = [body[name] for name in instruction.operands if name in body]
    if instruction.opcode in SLICES:
        return instruction.bytes + (sum(shape.bytes for shape in instruction.shapes) if given and given[0].bytes else 0)
    if instruction.opcode == "slice-start":  # ((source), destination, context)
        source, destination = instruction.shapes[:2]
        return destination.bytes * ((source.space == 0) + (destination.space == 0))
    if instruction.opcode == "dynamic-update-slice":
        return 2 * given[1].bytes if len(given) > 1 else instruction.bytes
    if instruction.opcode == "fusion" and instruction.calls and instruction.calls[0] in module.computations:
        return _moved_by_fusion(module, instruction, given)
    if instruction.opcode == "custom-call":  # a library's working space, u8[n] or s8[n] behind the results, is not counted
        scratch = [s for s in instruction.shapes[1:] if s.dtype in ("s8", "u8") and len(s.dims) == 1]
        return instruction.bytes - sum(s.bytes for s in scratch) + sum(one.bytes for one in given)
    if instruction.opcode == "copy-start":  # (destination, source, context)
        return sum(shape.bytes for shape in instruction.shapes[:2] if shape.space == 0)
    return instruction.bytes + sum(one.bytes for one in given)


def _moved_by_fusion(module: Module, fusion: Instruction, given: list[Instruction]) -> int:
    read = sum(
        _read(module, fusion.calls[0], parameter.name, given[int(parameter.arguments)].bytes)
        for parameter in _parameters(module, fusion.calls[0])
        if int(parameter.arguments) < len(given) and given[int(parameter.arguments)].bytes
    )
    return read + min(_written(module, fusion.calls[0], module.root(fusion.calls[0])), fusion.bytes)


def _parameters(module: Module, computation: str) -> list[Instruction]:
    return [one for one in module.computations[computation].values() if one.opcode == "parameter"]


def _read(module: Module, computation: str, name: str, whole: int) -> int:
    """Return the bytes that a fused computation reads of the array `name`, which has `whole` bytes; fusions may be nested."""
    parts = 0
    for reader in module.readers(computation).get(name, ()):
        if reader.opcode in SLICES and reader.operands[0] == name:
            parts += sum(shape.bytes for shape in reader.shapes)
        elif reader.opcode == "dynamic-update-slice" and reader.operands[0] == name:
            continue  # updated in place
        elif reader.opcode == "bitcast" and not reader.is_root:
            parts += _read(module, computation, reader.name, whole)
        elif reader.opcode == "fusion" and reader.calls and reader.calls[0] in module.computations:
            inner = [p.name for p in _parameters(module, reader.calls[0]) if reader.operands[int(p.arguments)] == name]
            parts += sum(_read(module, reader.calls[0], parameter, whole) for parameter in inner)
        else:
            return whole
    return min(parts, whole)


def _written(module: Module, computation: str, one: Instruction | None) -> int:
    """Return the bytes that a fused computation writes for its result `one`: of an array updated in place, the update."""
    body = module.computations[computation]
    if one is None:
        return 0
    if one.opcode == "tuple":
        return sum(_written(module, computation, body.get(name)) for name in one.operands)
    if one.opcode == "bitcast" and one.operands and one.operands[0] in body:
        return min(_written(module, computation, body[one.operands[0]]), one.bytes)
    if one.opcode == "fusion" and one.calls and one.calls[0] in module.computations:
        return min(_written(module, one.calls[0], module.root(one.calls[0])), one.bytes)
    if one.opcode == "dynamic-update-slice" and one.operands[1] in body and one.bytes:
        return sum(shape.bytes for shape in body[one.operands[1]].shapes)
    return one.bytes


def matmul_flops(module: Module) -> int:
    """Return the FLOPs of one device's matrix products and convolutions in a step; those of fused kernels are not seen."""
    total = 0
    for run in module.walk():
        held = [(run.computation, run.instruction)]
        if run.instruction.opcode == "fusion":
            held = list(module.inside(run.instruction))
        for computation, one in held:
            body = module.computations[computation]
            if one.opcode == "dot":
                total += run.times * _dot(body, one)
            elif one.opcode == "convolution":
                total += run.times * _convolution(body, one)
            elif one.opcode == "custom-call" and re.search(r'custom_call_target="__cublas\$', one.attributes):
                total += run.times * _dot(body, one)
    return total


def _dot(body: Mapping[str, Instruction], dot: Instruction) -> int:
    left = body[dot.operands[0]].shapes[0].dims
    text = dot.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or dot.attribute(r'lhs_contracting_dimensions":\[([^\]]*)\]')
    contracted = [int(n) for n in re.findall(r"\d+", text or "")] or [len(left) - 1]
    return 2 * dot.shapes[0].size * math.prod(left[i] for i in contracted)


def _convolution(body: Mapping[str, Instruction], one: Instruction) -> int:
    """2 x outputs x input features, times the window's places that lie inside of the (dilated) input."""
    image, kernel = (body[name].shapes[0].dims for name in one.operands[:2])
    labels = re.match(r"(\w+)_(\w+)->(\w+)", one.attribute(r"dim_labels=([\w>\-]+)") or "")
    if labels is None:
        return 0
    inputs, kernels, outputs = labels.groups()
    out = one.shapes[0].dims
    flops = 2 * out[outputs.index("b")] * out[outputs.index("f")] * kernel[kernels.index("i")]
    window = one.attribute(r"window=\{([^}]*)\}") or ""
    values = {name: text.split("x") for name, text in re.findall(r"(\w+)=(\S+)", window)}
    for place, axis in enumerate(sorted(c for c in inputs if c.isdigit())):
        given = lambda name, default: values.get(name, [default] * 9)[place]  # noqa: B023
        size, steps, length = kernel[kernels.index(axis)], out[outputs.index(axis)], image[inputs.index(axis)]
        stride, low = int(given("stride", "1")), int(given("pad", "0_0").split("_")[0])
        dilation, spread = int(given("lhs_dilate", "1")), int(given("rhs_dilate", "1"))
        valid = 0
        for step in range(steps):
            for tap in range(size):
                position = step * stride - low + tap * spread
                valid += position % dilation == 0 and 0 <= position // dilation < length
        flops *= valid
    batches = re.search(r"batch_group_count=(\d+)", one.attributes)
    return flops // (int(batches.group(1)) if batches else 1)


def attention_kernels(module: Module) -> dict[str, int]:
    """Return how often each fused attention kernel runs in a step, forward and backward: "splash", "cudnn"."""
    found: dict[str, int] = {}
    for run in module.walk():
        if run.instruction.opcode != "custom-call":
            continue
        name = run.instruction.attribute(r'custom_call_target="([^"]+)"') or ""
        kernel = "cudnn" if "cudnn$fmha" in name else None
        if name == "tpu_custom_call" and "splash" in run.instruction.op_name + run.instruction.name:
            kernel = "splash"
        if kernel:
            found[kernel] = found.get(kernel, 0) + run.times
    return found
