"""data/fast.py: every fast or lean path gives what the plain one gives."""
import contextlib
from types import SimpleNamespace

import pytest
import torch
import transformers
from conftest import prompt_of

import opct
from data import fast
from data.memory import SHAPES, memory

PROMPTS = [prompt_of(n, n) for n in (9, 4, 13)]


def answers_and_logits(model, monkeypatch, eos=frozenset({-1})):
    """Sampled answers, and the logits of every decoding step."""
    seen, head = [], opct.head
    monkeypatch.setattr(opct, "head", lambda m, h: seen.append(head(m, h)) or seen[-1])
    answers = opct.sample(model, PROMPTS, 2, 12, 1.0, eos, torch.Generator().manual_seed(3))
    monkeypatch.setattr(opct, "head", head)
    return answers, seen


def test_fixed_shapes_give_the_same_answers(model, monkeypatch):
    """What a CUDA graph needs: finished rows looked at now and then, slots in blocks."""
    eos = set(range(2, 12))  # many end tokens: answers end at different times, rows are dropped
    plain, _ = answers_and_logits(model, monkeypatch, eos)
    monkeypatch.setattr(opct, "stretch", lambda device: (4, 8))
    assert answers_and_logits(model, monkeypatch, eos)[0] == plain
    assert len({len(a) for group in plain for a in group}) > 2


def test_a_step_works_in_place(llama, monkeypatch):
    """A CUDA graph replays on the tensors it was recorded with: none may be exchanged for another
    between two looks at what is finished."""
    steps = []

    def watched(step, model):
        def places():
            held = [cell.cell_contents for cell in step.__closure__]
            slots = next(x for x in held if isinstance(x, opct.KVCache)).layers
            tensors = [x for x in held if isinstance(x, torch.Tensor)] + [x for kv in slots
                                                                         for x in kv]
            return [x.data_ptr() for x in tensors], [x.shape for x in tensors]

        def call():
            steps.append(1)
            assert places() == recorded
            step()
            assert places() == recorded
        recorded = places()
        return call
    monkeypatch.setattr(opct, "replayed", watched)
    monkeypatch.setattr(opct, "stretch", lambda device: (4, 8))
    answers_and_logits(llama, monkeypatch, set(range(2, 12)))
    assert len(steps) > 4


def test_a_replayed_step_runs_once_for_each_call(monkeypatch):
    """The order of recording and replaying, on a stand-in for the GPU's graph."""
    log, mode = [], ["default"]
    cuda = SimpleNamespace(
        set_sync_debug_mode=mode.append,
        Stream=lambda: SimpleNamespace(wait_stream=lambda other: None),
        current_stream=lambda: SimpleNamespace(wait_stream=lambda other: None),
        stream=lambda s: contextlib.nullcontext(),
        CUDAGraph=lambda: SimpleNamespace(replay=lambda: log.append("replay")),
        graph=lambda g, capture_error_mode: contextlib.nullcontext())
    monkeypatch.setattr(fast.torch, "cuda", cuda)
    gpu, waits = SimpleNamespace(device=torch.device("cuda")), []

    def step():
        if waits and mode[-1] == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        log.append("python")
    call = fast.replayed(step, gpu)
    for _ in range(4):
        call()
    assert log == ["python", "python", "replay", "replay", "replay"]  # the second python records
    log.clear()
    waits.append("for the GPU")  # such a model cannot be recorded: python every time
    for call in (fast.replayed(step, gpu), fast.replayed(step, gpu)):
        call()
        call()
    assert log == ["python"] * 4 and mode[-1] == "default"


def test_recomputed_layers_give_the_same_gradients_and_keep_less(adapted):
    model, params = adapted
    packed = opct.pack(PROMPTS, [[prompt_of(6, 1), prompt_of(6, 2)]] * 3)

    def gradients_and_kept():
        kept = []

        def keep(x):
            kept.append(x.numel())
            return x
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            loss = opct.read(model, packed).square().sum()
        return torch.autograd.grad(loss, params), sum(kept)

    plain, much = gradients_and_kept()
    fast.recompute_layers(model)
    lean, little = gradients_and_kept()
    assert little < much / 3
    for a, b in zip(plain, lean):
        torch.testing.assert_close(a, b)


def test_packed_weights_multiply_as_the_plain_ones_and_leave_no_trace(model, monkeypatch):
    x, layers = torch.randn(3, 32), [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    plain = [m(x) if m.in_features == 32 else None for m in layers]
    with fast.packed_weights(model):
        for m, y in zip(layers, plain):
            assert m.forward.func is fast.packed_linear
            if y is not None:
                torch.testing.assert_close(m(x), y)
    assert not any("forward" in vars(m) for m in layers)
    ours, our_logits = answers_and_logits(model, monkeypatch)
    monkeypatch.setattr(opct, "packed_weights", lambda model: contextlib.nullcontext())
    theirs, their_logits = answers_and_logits(model, monkeypatch)
    assert ours == theirs
    torch.testing.assert_close(torch.stack(our_logits), torch.stack(their_logits))


def test_weights_that_train_or_change_are_not_taken_from_an_old_copy(llama):
    layer, x = llama.model.layers[0].mlp.up_proj, torch.randn(2, 32)
    with fast.packed_weights(llama):
        layer(x)
    layer.weight.data.copy_(torch.randn_like(layer.weight))
    layer.weight.add_(1)
    with fast.packed_weights(llama):
        torch.testing.assert_close(layer(x), torch.nn.functional.linear(x, layer.weight))
    layer.weight.requires_grad_(True)
    with fast.packed_weights(llama):
        assert "forward" not in vars(layer)


def test_a_forward_that_somebody_else_has_put_in_place_stays(llama):
    head = llama.get_output_embeddings()
    head.forward = theirs = lambda hidden: hidden
    with fast.packed_weights(llama):
        assert head.forward is theirs
    assert head.forward is theirs


def test_a_large_model_is_not_packed(llama, monkeypatch):
    monkeypatch.setattr(fast, "PACK_AT_MOST", 1000)
    with fast.packed_weights(llama):
        assert not any("forward" in vars(m) for m in llama.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lean", [False, True])
def test_the_memory_reckoned_is_what_autograd_keeps(dtype, lean):
    config = SHAPES["SmolLM2-135M"]()
    config.vocab_size, kept = 300, []
    for layers in (1, 3):
        config.num_hidden_layers = layers
        model = transformers.AutoModelForCausalLM.from_config(config).to(dtype).eval()
        opct.add_lora(model, 16, 32)
        if lean:
            fast.recompute_layers(model)
        packed, seen = opct.pack([prompt_of(200, 0)], [[prompt_of(16, n) for n in range(4)]]), {}
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

        def keep(x):
            storage = x.untyped_storage()
            if storage.data_ptr() not in weights:
                seen[storage.data_ptr()] = (storage.nbytes(), x)  # x held, or its place is reused
            return x
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            opct.read(model, packed)
        kept.append(sum(size for size, _ in seen.values()) / 1e9)
    said = [memory(config, token_budget=260, kl_chunk=0, gradient_checkpointing=lean,
                   bytes_each=dtype.itemsize)["reading"] for config.num_hidden_layers in (1, 3)]
    ours, theirs = said[1] - said[0], kept[1] - kept[0]
    assert 0.8 < ours / theirs < 1.25
