"""Section 3: student and teacher in one set of weights."""
import pytest
import torch
from conftest import make_model, prompt_of

import opct

IDS = torch.tensor([prompt_of(12, 0)])


def test_adapter_is_on_every_linear_layer_but_the_head(llama):
    opct.add_lora(llama, 4, 8)
    linear = [n for n, m in llama.named_modules() if isinstance(m, opct.LoRALinear)]
    assert len(linear) == 3 * 7 and "lm_head" not in linear


def test_student_is_the_base_model_before_the_first_step(llama):
    before = llama(input_ids=IDS).logits
    opct.add_lora(llama, 4, 8)
    assert torch.equal(llama(input_ids=IDS).logits, before)


def test_lora_adds_scaled_ba():
    base = torch.nn.Linear(6, 5)
    layer = opct.LoRALinear(base, 2, 8)
    layer.B.data.normal_()
    x = torch.randn(3, 6)
    expected = x @ (base.weight + 8 / 2 * layer.B @ layer.A).T + base.bias
    torch.testing.assert_close(layer(x), expected)


def test_only_the_adapter_trains(llama):
    params = opct.add_lora(llama, 4, 8)
    assert {id(p) for p in llama.parameters() if p.requires_grad} == {id(p) for p in params}
    assert sum(p.numel() for p in params) == 3 * 4 * (32 * 2 * 2 + (32 + 16) * 2 + (32 + 48) * 3)


@pytest.mark.parametrize("rank", [4, 0])
def test_teacher_is_bitwise_the_loaded_model_before_during_and_after_training(rank):
    model = make_model("rotary")
    loaded = model(input_ids=IDS).logits.clone()
    params = opct.add_lora(model, rank, 8)
    optimizer = torch.optim.Adam(params, lr=0.01)
    cfg = opct.Config(samples=2, max_new_tokens=4, lora_rank=rank)
    for _ in range(3):
        with opct.teacher(model):
            assert torch.equal(model(input_ids=IDS).logits, loaded)
        batch = [(prompt_of(9, 1), prompt_of(6, 2))]
        opct.opct_loss(model, batch, cfg, torch.Generator().manual_seed(0))[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = model(input_ids=IDS).logits
    assert not torch.equal(trained, loaded)
    with opct.teacher(model):
        assert torch.equal(model(input_ids=IDS).logits, loaded)
        with opct.teacher(model):  # nested, as the evaluation of the base model does
            assert torch.equal(model(input_ids=IDS).logits, loaded)
        assert torch.equal(model(input_ids=IDS).logits, loaded)
    assert torch.equal(model(input_ids=IDS).logits, trained)


def test_teacher_ends_also_when_something_fails_inside(adapted):
    model, _ = adapted
    student = model(input_ids=IDS).logits
    with pytest.raises(ZeroDivisionError):
        with opct.teacher(model):
            1 / 0
    assert torch.equal(model(input_ids=IDS).logits, student)


def test_training_all_weights_gives_every_weight_a_gradient():
    model = make_model("rotary")
    params = opct.add_lora(model, 0, 8)
    for p in params:  # away from the teacher, where the gradient is zero
        p.data.add_(torch.randn_like(p) * 0.05)
    cfg = opct.Config(samples=4, max_new_tokens=4, lora_rank=0, token_budget=10)
    opct.opct_loss(model, [(prompt_of(9, 1), prompt_of(6, 2))], cfg,
                   torch.Generator().manual_seed(0))[0].backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in params)


def test_a_model_without_linear_layers_is_refused():
    with pytest.raises(opct.UserError, match="--lora-rank 0"):
        opct.add_lora(make_model("absolute"), 4, 8)


def test_the_weight_of_an_adapted_layer_is_what_it_multiplies_by(adapted):
    """Some models multiply by layer.weight themselves."""
    model, _ = adapted
    layer, x = model.model.layers[0].mlp.up_proj, torch.randn(3, 32)
    for on in (True, False):
        layer.on = on
        torch.testing.assert_close(torch.nn.functional.linear(x, layer.weight, layer.bias),
                                   layer(x))
