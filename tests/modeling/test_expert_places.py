"""P of experts costs least where it is put, and is the same there."""

import copy
import logging
import pickle

import pytest
import torch
from any_family import inputs_of_any, output_of_any
from test_stacked import CLOSE, HALF, IMPLEMENTATIONS, LAYOUTS, scaled, tiny

from hf_mlp_fusion import fuse_model
from hf_mlp_fusion.modeling import expert_places, gate_kernel, stack_modules
from hf_mlp_fusion.modeling.expert_places import cheapest_place
from hf_mlp_fusion.modeling.gate_kernel import gated, gated_in_one
from hf_mlp_fusion.modeling.stack_modules import StackedMLP

decorated = pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "transposed"])
PLAIN = [name for name in LAYOUTS if name not in ("transposed", "interleaved, transposed, with biases")]


def places_of(implementation, layout):
    places = ["weights", "activations"]
    if implementation != "grouped_mm":
        places.append("each")
    if implementation != "eager" and layout in PLAIN:
        places.append("kernel")
    return places


def outcome(model):
    """The output, and the gradients of a loss."""
    model = copy.deepcopy(model)
    inputs = inputs_of_any(model)
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {"output": output_of_any(model), **gradients}


@decorated
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("scales", [False, True])
def test_p_is_the_same_in_every_place(layout, implementation, scales, monkeypatch):
    monkeypatch.setattr(gate_kernel, "_forward", gated)  # what is compiled of them has a test of its own
    monkeypatch.setattr(gate_kernel, "_backward", gate_kernel._gradient)
    fused = fuse_model(tiny(layout), HALF)
    if scales:
        fused = scaled(fused)
    fused.set_experts_implementation(implementation)
    expected = outcome(fused)
    for place in places_of(implementation, layout):
        monkeypatch.setattr(stack_modules, "cheapest_place", lambda *_, place=place: place)
        found = outcome(fused)
        assert set(found) == set(expected)
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, expected[name], **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


@decorated
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS[1:])
@pytest.mark.parametrize("scales", [False, True])
def test_compiled_experts(layout, implementation, scales):
    """In one graph, whatever chooses the place."""
    fused = fuse_model(tiny(layout), HALF)
    if scales:
        fused = scaled(fused)
    fused.set_experts_implementation(implementation)
    stack = next(module for module in fused.modules() if isinstance(module, StackedMLP))
    experts = len(stack.cluster_sizes)
    size = stack.down_proj.shape[2 if stack.stack_shape.transposed else 1]
    hidden = torch.randn(6, size, generator=torch.Generator().manual_seed(1))
    index = torch.randint(0, experts, (6, 2), generator=torch.Generator().manual_seed(0))
    weights = torch.rand(6, 2)
    torch.compiler.reset()
    compiled = torch.compile(stack, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(hidden, index, weights), stack(hidden, index, weights), **CLOSE)
    compiled(hidden, index, weights).sum().backward()
    found = stack.down_proj.grad.clone()
    stack.down_proj.grad = None
    stack(hidden, index, weights).sum().backward()
    torch.testing.assert_close(found, stack.down_proj.grad, **CLOSE)


def test_the_choice(monkeypatch):
    fused = fuse_model(tiny(), HALF)
    stack = next(module for module in fused.modules() if isinstance(module, StackedMLP))
    experts, hidden, _ = stack.down_proj.shape
    few, many = torch.zeros(experts * hidden // 12, 2), torch.zeros(experts * hidden, 2)
    assert cheapest_place(stack, "eager", few) == "each"
    assert cheapest_place(stack, "batched_mm", few) == "activations"
    assert cheapest_place(stack, "grouped_mm", few) == "activations"
    assert cheapest_place(stack, "grouped_mm", many) == "weights"
    for unknown in ("sonicmoe", None):
        assert cheapest_place(stack, unknown, few) == "weights"
    assert cheapest_place(stack, "grouped_mm", None) == "weights"
    monkeypatch.setattr(expert_places, "compiles", lambda _: True)
    monkeypatch.setattr(expert_places, "_KERNEL_PAYS", many.numel() * stack.width)
    assert cheapest_place(stack, "grouped_mm", many) == "kernel"
    assert cheapest_place(stack, "grouped_mm", few) == "activations"
    other = fuse_model(tiny("interleaved, transposed, with biases"), HALF)
    own_gate = next(module for module in other.modules() if isinstance(module, StackedMLP))
    assert cheapest_place(own_gate, "grouped_mm", many) == "weights"


# torch's own compiler says this of torch's own code when it is imported.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
class TestKernel:
    """As it is compiled, on a CPU."""

    @pytest.fixture(autouse=True)
    def afresh(self, monkeypatch):
        torch.compiler.reset()
        monkeypatch.setattr(gate_kernel, "_forward", gate_kernel._Compiled(gated))
        monkeypatch.setattr(gate_kernel, "_backward", gate_kernel._Compiled(gate_kernel._gradient))

    @staticmethod
    def arguments(count, seed=0, scales=True, dtype=torch.float64):
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(count, 16, generator=generator, dtype=dtype, requires_grad=True)
        factor = torch.randint(1, 9, (4, 8), generator=generator).to(dtype)
        inner = torch.rand(4, 1, generator=generator, dtype=dtype) if scales else None
        experts = torch.randint(0, 4, (count,), generator=generator)
        return rows, factor, inner, experts, torch.nn.SiLU()

    def test_one_compilation_for_all_numbers_of_rows(self):
        seen = torch._dynamo.utils.counters["stats"]
        for count in (12, 40, 7, 33):
            arguments = self.arguments(count, seed=count)
            found = gated_in_one(*arguments)
            expected = gated(*arguments)
            torch.testing.assert_close(found, expected)
            outer = torch.rand_like(expected)
            (gradient,) = torch.autograd.grad(found, arguments[0], outer)
            torch.testing.assert_close(gradient, torch.autograd.grad(expected, arguments[0], outer)[0])
            if count == 12:
                graphs = seen["unique_graphs"]
        assert seen["unique_graphs"] == graphs

    def test_gradients_of_gradients(self):
        rows, *others = self.arguments(5)
        assert torch.autograd.gradgradcheck(lambda own: gated_in_one(own, *others), (rows,))

    @pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
    def test_without_gradients(self, context):
        with context():
            arguments = self.arguments(9, scales=False)
            torch.testing.assert_close(gated_in_one(*arguments), gated(*arguments))

    def test_autocast_and_checkpointing(self):
        arguments = self.arguments(9, dtype=torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16):
            found = torch.utils.checkpoint.checkpoint(gated_in_one, *arguments, use_reentrant=False)
        found.sum().backward()
        expected = gated(*arguments)
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=1e-1)
        gradient = torch.autograd.grad(expected.sum(), arguments[0])[0]
        torch.testing.assert_close(arguments[0].grad, gradient, rtol=2e-2, atol=1e-1)

    def test_a_machine_without_a_compiler(self, monkeypatch, caplog):
        """Says so once, and goes on."""

        def compile_nothing(function):
            def run(*_):
                raise RuntimeError("no compiler")

            return run

        monkeypatch.setattr(torch, "compile", compile_nothing)
        gate_kernel._tell.cache_clear()
        with caplog.at_level(logging.WARNING):
            for count in (3, 4):
                rows, *others = self.arguments(count)
                found = gated_in_one(rows, *others)
                torch.testing.assert_close(found, gated(rows, *others))
                found.sum().backward()
        assert [record.message for record in caplog.records] == [
            "torch.compile does not work here (RuntimeError): P of experts takes kernels of its own"
        ]

    def test_no_memory_is_no_missing_compiler(self, monkeypatch):
        calls = []

        def full(*_):
            calls.append(1)
            raise torch.OutOfMemoryError

        monkeypatch.setattr(torch, "compile", lambda _: full)
        for _ in range(2):
            with pytest.raises(torch.OutOfMemoryError):
                gated_in_one(*self.arguments(3))
        assert len(calls) == 2

    def test_nothing_compiled_is_in_a_model(self, monkeypatch):
        monkeypatch.setattr(stack_modules, "cheapest_place", lambda *_: "kernel")
        fused = fuse_model(tiny(), HALF)
        before = output_of_any(fused)
        assert gate_kernel._forward.compiled is not None
        for again in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
            assert output_of_any(again).equal(before)


def test_nothing_is_compiled_for_a_cpu():
    assert not gate_kernel.compiles(torch.zeros(1))
