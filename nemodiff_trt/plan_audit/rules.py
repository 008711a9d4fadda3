"""From a resolved step to findings. Every rule looks at one step; the audit keeps the largest finding of a kind per profile."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from nemodiff_trt.plan_audit.launches import Launch, LaunchKind, unknown_kinds
from nemodiff_trt.plan_audit.lineage import Copy, cache_copies, feeds, weight_copies
from nemodiff_trt.plan_audit.report import Finding, FindingCode, Severity
from nemodiff_trt.plan_audit.tensors import Operand, OperandKind, TensorTable
from nemodiff_trt.plan_audit.traffic import Step, launch_bytes
from nemodiff_trt.vocabulary import Precision

_MAX_NAMES = 6


def step_findings(steps: tuple[Step, ...]) -> Iterator[Finding]:
    """All findings of one step. It is one program, unless the plan is cut into several."""
    for step in steps:
        yield from _weight_copies(step)
        yield from _cache_copies(step)
        yield from _whole_cache_attention(step)
        yield from _fp32_gemms(step)
        yield from _unquantized_gemms(step)
        yield from _device_reads(step)
    yield from _unfused_attention(steps)


def megabytes(num_bytes: int) -> str:
    """A size a person can read, in decimal units."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.2f} {unit}"
    return f"{num_bytes} B"


def _warning(step: Step, code: FindingCode, message: str, num_bytes: int = 0, names: Iterable[str] = ()) -> Finding:
    point = step.point
    where = f"at B={point.batch}, S={point.step}: {message}"
    shown = tuple(dict.fromkeys(names))[:_MAX_NAMES]
    return Finding(code, Severity.WARNING, where, step.program.profile, num_bytes, shown)


def _copy_names(copies: list[Copy]) -> list[str]:
    ordered = sorted(copies, key=lambda copy: -copy.num_bytes)
    return [name for copy in ordered for name in (copy.launch.name, copy.source.label)]


def _weight_copies(step: Step) -> Iterator[Finding]:
    groups: dict[FindingCode, list[Copy]] = {}
    for copy in weight_copies(step.launches):
        groups.setdefault(_weight_copy_code(step, copy), []).append(copy)
    what = {
        FindingCode.WEIGHT_COPY: "write weights out again",
        FindingCode.DEQUANTIZED_WEIGHT_COPY: "write quantised weights out in a wider format",
        FindingCode.SCALE_SWIZZLE: "rearrange block scales",
    }
    for code, copies in groups.items():
        total = sum(copy.num_bytes for copy in copies)
        yield _warning(
            step, code, f"{len(copies)} kernels {what[code]}, moving {megabytes(total)} a step", total, _copy_names(copies)
        )


def _weight_copy_code(step: Step, copy: Copy) -> FindingCode:
    if copy.copy.bits > copy.source.bits:
        return FindingCode.DEQUANTIZED_WEIGHT_COPY
    uses = [index in launch.matrices for launch, index in feeds(step.launches, copy.copy.base) if launch.gemms]
    return FindingCode.SCALE_SWIZZLE if uses and not any(uses) else FindingCode.WEIGHT_COPY


def _feeds_gemm(step: Step, copy: Copy) -> bool:
    return any(launch.gemms for launch, _ in feeds(step.launches, copy.copy.base))


def _cache_copies(step: Step) -> Iterator[Finding]:
    """Copies that feed matrix multiplications belong to attention that is not fused, which has its own finding."""
    copies = [copy for copy in cache_copies(step.launches, step.facts.cache.capacity) if not _feeds_gemm(step, copy)]
    if copies:
        total = sum(copy.num_bytes for copy in copies)
        message = f"{len(copies)} kernels copy caches over their whole capacity, moving {megabytes(total)} a step"
        yield _warning(step, FindingCode.CACHE_COPY, message, total, _copy_names(copies))


def _unfused_attention(steps: tuple[Step, ...]) -> Iterator[Finding]:
    launches = [launch for step in steps for launch in step.launches]
    fused = sum(launch.kind is LaunchKind.ATTENTION for launch in launches)
    num_layers = steps[0].facts.num_layers if steps else 0
    if fused >= num_layers:
        return
    copies = [
        copy for step in steps for copy in cache_copies(step.launches, step.facts.cache.capacity) if _feeds_gemm(step, copy)
    ]
    total = sum(copy.num_bytes for copy in copies)
    message = f"{fused} fused attention kernels for {num_layers} layers, the others are made of separate kernels"
    if copies:
        message += f", among them {len(copies)} that copy caches, moving {megabytes(total)} a step"
    names = [launch.label for launch in launches if any(operand.kind is OperandKind.CACHE for operand in launch.reads)]
    yield _warning(steps[0], FindingCode.UNFUSED_ATTENTION, message, total, _copy_names(copies) or names)


def _whole_cache_attention(step: Step) -> Iterator[Finding]:
    fused = [launch for launch in step.launches if launch.kind is LaunchKind.ATTENTION]
    blind = [launch for launch in fused if not step.knows_lengths(launch)]
    if blind:
        total = sum(launch_bytes(step, launch).total for launch in blind)
        capacity = step.facts.cache.capacity
        used = step.point.used_tokens(capacity)
        message = f"{len(blind)} attention kernels get no lengths and cover all {capacity} slots, {used} of which are used"
        yield _warning(step, FindingCode.WHOLE_CACHE_ATTENTION, message, total, (launch.name for launch in blind))


def _fp32_gemms(step: Step) -> Iterator[Finding]:
    wide = [launch for launch in step.launches if any("fp32" in pair for pair in launch.gemms)]
    if not wide:
        return
    total = sum(launch_bytes(step, launch).total for launch in wide)
    message = f"{len(wide)} matrix multiplications have fp32 operands in a plan of precision {step.facts.precision}"
    finding = _warning(step, FindingCode.FP32_GEMM, message, total, (launch.label for launch in wide))
    if step.facts.precision is not Precision.FP32:
        yield finding


def _unquantized_gemms(step: Step) -> Iterator[Finding]:
    """Matrices that the recipe quantises, and that no multiplication takes in the format together with its input."""
    wanted = {name: weight.operands for name, weight in step.facts.weights.items() if weight.operands}
    right, wrong = set[str](), dict[str, Launch]()
    for launch in step.launches:
        for index in launch.matrices:
            name = launch.inputs[index].label
            form = wanted.get(name)
            if form is None:
                continue
            if launch.gemms and all(pair == (form, form) for pair in launch.gemms):
                right.add(name)
            else:
                wrong[name] = launch
    missed = [name for name in wanted if name not in right or name in wrong]
    if missed:
        pairs = sorted({" x ".join(pair) for launch in wrong.values() for pair in launch.gemms})
        found = f" ({', '.join(pairs)})" if pairs else ""
        forms = "/".join(sorted(set(wanted.values())))
        message = f"{len(missed)} of {len(wanted)} quantised matrices are not multiplied in {forms} with a {forms} input{found}"
        total = sum(step.facts.weights[name].num_bytes for name in missed)
        yield _warning(step, FindingCode.UNQUANTIZED_GEMM, message, total, missed)


def _device_reads(step: Step) -> Iterator[Finding]:
    """Copies to the host in the middle of a step. Sizes sent the other way, to the device, wait for nothing."""
    table = TensorTable(step.program, step.facts, step.point)
    read = [
        operation
        for operation in step.program.main
        if operation.kind == "copy"
        and any(table.operand(name).kind is OperandKind.HOST for name in operation.outputs)
        and not all(table.operand(name).kind is OperandKind.HOST for name in operation.inputs)
    ]
    if read:
        message = f"{len(read)} copies of device results to the host, each of which waits for the device"
        yield _warning(step, FindingCode.HOST_ROUND_TRIP, message, 0, (operation.name for operation in read))


def format_findings(steps: tuple[Step, ...], sizes_from_data: bool) -> Iterator[Finding]:
    """What of a profile's programs the audit does not understand.

    `sizes_from_data`: the device computes sizes, which is a finding of its own; then some cannot be known here.
    """
    profile = steps[0].program.profile if steps else None
    kinds = list(dict.fromkeys(kind for step in steps for kind in unknown_kinds(step.program)))
    if kinds:
        message = f"operations of unknown kinds were counted as launches: {', '.join(kinds[:_MAX_NAMES])}"
        yield Finding(FindingCode.UNKNOWN_PLAN_FORMAT, Severity.INFO, message, profile)
    launches = [launch for step in steps for launch in step.launches]
    operands = [operand for launch in launches for operand in (*launch.inputs, *launch.reads, *launch.writes)]
    unknown = list(dict.fromkeys(operand.label for operand in operands if _has_no_size(operand)))
    if unknown:
        severity = Severity.INFO if sizes_from_data else Severity.WARNING
        message = f"the sizes of {len(unknown)} tensors could not be worked out; they count as 0 bytes"
        yield Finding(FindingCode.UNKNOWN_PLAN_FORMAT, severity, message, profile, 0, tuple(unknown[:_MAX_NAMES]))


def _has_no_size(operand: Operand) -> bool:
    if operand.kind is OperandKind.HOST:
        return False
    # An undeclared name has no dtype; workspace is declared, and left out on purpose.
    return operand.num_elements is None or operand.bits == 0
