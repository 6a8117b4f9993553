"""The C++ library itself: that it was built and is the right one, and that its three builds agree."""

import ctypes

import pytest
import torch
import truth

from policy_split_kernels.cpu import divergence as native_divergence
from policy_split_kernels.cpu import library as native_library
from policy_split_kernels.cpu import logits as native
from policy_split_kernels.reference import divergence as reference_divergence
from policy_split_kernels.reference import logits as reference

CAPABILITIES = {"default": 0, "avx2": 1, "avx512": 2}
HERE = {"AVX512": 2, "AVX2": 1}.get(torch.backends.cpu.get_cpu_capability(), 0)


def test_the_library_was_built_and_loads():
    """Without it everything still works, many times slower: this is the one place that notices."""
    library = native_library.opened()
    assert library is not None, native_library.why_missing()
    expected = next(name for name, level in CAPABILITIES.items() if level == HERE)
    assert library.ps_instruction_set().decode() == expected


def arguments(dtype, rows, vocabulary, options=False):
    generator = torch.Generator().manual_seed(vocabulary)
    statistics = reference.statistics_dtype(dtype)

    def vector(scale=1.0):
        return (torch.randn(rows, generator=generator) * scale).to(statistics)

    logits = (torch.randn(1, rows, vocabulary + 3, generator=generator) * 4).to(dtype)[..., :vocabulary]
    targets = torch.randint(vocabulary, (rows,), generator=generator)
    mask = torch.rand(rows, generator=generator) > 0.2
    inverse_temperature = torch.rand(rows, generator=generator).add(0.5).to(statistics)
    keep = torch.rand(1, rows, vocabulary + 5, generator=generator)[..., :vocabulary] > 0.3
    keep.scatter_(-1, targets[None, :, None], True)
    common = (logits, targets, inverse_temperature, mask, *((3.5, keep) if options else (None, None)))
    logprobs = reference.logprobs_entropy(*common).logprobs
    behaviour = (logprobs + vector(0.3), logprobs + vector(0.3), logprobs + vector(1.0))
    coefficients = (vector(), vector(), vector())
    clip = ("cispo", 0.2, 0.3, None, 1.2) if options else ("clip", 0.2, 0.3, 1.5, 1.2)
    clip = (*clip, [1.0, 1.05], options, 3.0 if options else None)
    return (*common, vector(), *behaviour, *coefficients, *clip)


@pytest.mark.parametrize("instruction_set", [name for name, level in CAPABILITIES.items() if level <= HERE])
@pytest.mark.parametrize("dtype", truth.DTYPES, ids=str)
@pytest.mark.parametrize("vocabulary", [1, 3, 16, 65, 2053, 4100])
@pytest.mark.parametrize("options", [False, True])
def test_every_instruction_set(monkeypatch, instruction_set, dtype, vocabulary, options):
    opened = native_library.load_library(instruction_set)
    assert opened is not None
    monkeypatch.setattr(native_library, "opened", lambda: opened)
    call = arguments(dtype, 5, vocabulary, options)
    exact = [x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in call]
    gradient = torch.full_like(call[0], 7.0)
    true_gradient = torch.empty_like(exact[0])
    actual = native.dual_mode_loss(*call, gradient)
    expected = reference.dual_mode_loss(*exact, true_gradient)
    tolerance = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 2e-5, "atol": 2e-5}
    for name, x, y in zip(actual._fields, actual, expected, strict=True):
        if name == "clipped":
            assert torch.equal(x, y)
        else:
            torch.testing.assert_close(x.double(), y, **tolerance, msg=lambda text, name=name: f"{name}: {text}")
    terms = (actual.grad_logprobs.abs() + actual.grad_entropy.abs()).double() * 10
    truth.assert_gradient_close(gradient[0], true_gradient[0], dtype, terms=terms)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("instruction_set", [name for name, level in CAPABILITIES.items() if level <= HERE])
def test_every_number_of_a_short_type_is_read_and_rounded_as_in_torch(monkeypatch, instruction_set, dtype):
    """All 65,536 bit patterns through load, times a factor, store: scale_rows_ does nothing else."""
    opened = native_library.load_library(instruction_set)
    monkeypatch.setattr(native_library, "opened", lambda: opened)
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).view(1, 16, -1)
    for factor in (0.999, -3.14159, 1e-3, 1.5):  # 1.5: half of the odd numbers end in a tie
        scaled = every.clone()
        native.scale_rows_(scaled, torch.full((16,), factor))
        expected = (every.float() * torch.tensor(factor)).to(dtype)
        number = ~expected.isnan()
        assert torch.equal(scaled.isnan(), expected.isnan())
        tiny = torch.finfo(torch.float32).tiny  # what lies below, before or after, is flushed: in bfloat16 alone
        flushed = (scaled == 0) & ((every.abs() < tiny) | (expected.abs() <= tiny))
        assert ((scaled == expected) | flushed)[number].all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_a_nan_that_rounding_would_carry_over_is_stored_as_nan(dtype):
    payload = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)
    x = torch.ones(1, 1, 40, dtype=dtype)
    native.scale_rows_(x, payload)
    assert x.isnan().all()


def test_gradients_below_the_smallest_normal_number_are_zero():
    """Each would cost a hundred cycles; and none of them could move a weight."""
    logits = torch.linspace(0, -100, 2000).view(1, 1, 2000)
    gradient = torch.empty_like(logits)
    ones = torch.ones(1)
    targets = torch.zeros(1, dtype=torch.long)
    native.dual_mode_loss(
        logits, targets, ones, None, None, None, ones, None, None, None, ones * 1e-3, ones, ones,
        "clip", 0.2, 0.2, None, 2.0, [1.0, 1.05], False, None, gradient,
    )  # fmt: skip
    size = gradient.abs()
    assert not ((size > 0) & (size < torch.finfo(torch.float32).tiny)).any()
    assert size[0, 0, 1500] > 0
    assert size[0, 0, -1] == 0


def test_the_gradient_leaves_its_neighbours_alone():
    """Rows of a wider buffer: what lies between them is not written."""
    call = arguments(torch.float32, 4, 37)
    wide = torch.full((1, 4, 50), 7.0)
    native.dual_mode_loss(*call, wide[..., :37])
    assert (wide[..., 37:] == 7).all()
    assert (wide[..., :37] != 7).all()


def test_targets_are_checked_before_anything_is_written():
    call = list(arguments(torch.float32, 4, 37))
    call[1][2], call[3][2] = 37, True
    gradient = torch.full((1, 4, 37), 7.0)
    with pytest.raises(IndexError, match=r"targets\[2\] = 37"):
        native.dual_mode_loss(*call, gradient)
    assert (gradient == 7).all()


def test_threads_do_not_change_a_bit():
    call = arguments(torch.float32, 64, 2053)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            gradient = torch.empty(1, 64, 2053)
            results.append((*native.dual_mode_loss(*call, gradient), gradient))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


def pair_arguments(dtype, rows, vocabulary):
    """Of both operations on pairs; b's rows lie apart, a's do not."""
    generator = torch.Generator().manual_seed(vocabulary)
    statistics = reference.statistics_dtype(dtype)
    a = torch.randn(1, rows, vocabulary, generator=generator).mul(4).to(dtype)
    b = torch.randn(1, rows, vocabulary + 3, generator=generator).mul(4).to(dtype)[..., :vocabulary]
    mask = torch.rand(rows, generator=generator) > 0.2
    temperature = torch.rand(rows, generator=generator).add(0.5).to(statistics)
    return (a, b, temperature, mask), [torch.randn(rows, generator=generator).to(statistics) for _ in range(4)]


def pair_results(module, call, upstream):
    rows = module.divergence(*call)
    wide = [torch.full((*x.shape[:-1], x.shape[-1] + 5), 7.0, dtype=x.dtype) for x in call[:2]]
    module.divergence_gradient(*call, *rows, *upstream, *(x[..., :-5] for x in wide))
    assert all((x[..., -5:] == 7).all() for x in wide)  # what lies between the rows is not written
    return [*rows, *(x[..., :-5] for x in wide)]


@pytest.mark.parametrize("instruction_set", [name for name, level in CAPABILITIES.items() if level <= HERE])
@pytest.mark.parametrize("dtype", truth.DTYPES, ids=str)
@pytest.mark.parametrize("vocabulary", [1, 3, 16, 65, 2053, 4100])
def test_the_divergence_of_every_instruction_set(monkeypatch, instruction_set, dtype, vocabulary):
    opened = native_library.load_library(instruction_set)
    monkeypatch.setattr(native_library, "opened", lambda: opened)
    call, upstream = pair_arguments(dtype, 5, vocabulary)
    exact = [x.double() if x.is_floating_point() else x for x in call]
    expected = pair_results(reference_divergence, exact, [x.double() for x in upstream])
    actual = pair_results(native_divergence, call, upstream)
    tolerance = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 2e-5, "atol": 2e-5}
    for x, y in zip(actual[:8], expected, strict=False):
        torch.testing.assert_close(x.double(), y, **tolerance)
    terms = sum(x.abs() for x in upstream).double() * 10
    for x, y in zip(actual[8:], expected[8:], strict=True):
        truth.assert_gradient_close(x[0], y[0], dtype, terms=terms)


def test_threads_do_not_change_a_bit_of_the_divergence():
    call, upstream = pair_arguments(torch.float32, 64, 2053)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(pair_results(native_divergence, call, upstream))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


def test_threads_do_not_change_a_bit_of_the_options():
    call = arguments(torch.float32, 64, 2053, options=True)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            gradient = torch.empty(1, 64, 2053)
            results.append((*native.dual_mode_loss(*call, gradient), gradient))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


def test_a_library_of_other_sources_is_refused(monkeypatch):
    monkeypatch.setattr(native_library, "INTERFACE_VERSION", -1)
    with pytest.warns(RuntimeWarning, match="built from other sources"):
        assert native_library.load_library("default") is None


def test_a_library_that_cannot_be_opened_is_left_aside(monkeypatch, tmp_path):
    (tmp_path / "libpolicy_split_kernels_default.so").write_bytes(b"of another machine")
    monkeypatch.setattr(native_library, "_FOLDER", tmp_path)
    with pytest.warns(RuntimeWarning, match="cannot be opened"):
        assert native_library.load_library("default") is None
    assert native_library.load_library("avx2") is None  # not there: nothing to say


def test_structures_have_the_size_of_the_c_interface():
    """Eight bytes for each pointer, integer and double; the two 32-bit fields of a matrix share one."""
    assert ctypes.sizeof(native_library.Matrix) == 8 * 19
    assert ctypes.sizeof(native_library.Statistics) == 8 * 4
    assert ctypes.sizeof(native_library.Loss) == 8 * 21
    assert ctypes.sizeof(native_library.Mixture) == 8 * 8


def test_equal_log_probs_make_a_ratio_of_exactly_one():
    """The library computes them in float64 and hands them out rounded: the ratio is that of what it handed out."""
    call = list(arguments(torch.float32, 300, 65))
    call[7] = native.logprobs_entropy(*call[:6]).logprobs  # old
    call[14], call[15], call[16] = 0.0, 0.0, None  # a clip that leaves nothing but 1
    assert not native.dual_mode_loss(*call, None).clipped.any()
