"""Section 3: student and teacher in one set of weights."""
import pytest
import torch
from conftest import add_adapter, make_model, prompt_of
from families import FAMILIES

import opct

IDS = torch.tensor([prompt_of(12, 0)])

@pytest.mark.parametrize("kind", ["rotary", "nested"])
def test_adapter_is_on_every_linear_layer_of_the_text_model_but_the_head(kind):
    model = make_model(kind)
    opct.add_lora(model, 4, 8)
    adapted = [n for n, m in model.named_modules() if isinstance(m, opct.LoRALinear)]
    assert len(adapted) == 3 * 7
    assert not any("lm_head" in name or "vision" in name for name in adapted)

def test_no_adapter_bears_a_name_that_peft_takes_for_the_experts(llama):
    opct.add_lora(mixture := make_model(FAMILIES["DeepSeek-V3"]()), 4, 8)
    names = [n for n, m in mixture.named_modules() if isinstance(m, opct.LoRALinear)]
    assert names and not any(".mlp." in name for name in names)

def test_a_subclass_of_a_linear_layer_is_adapted_too(llama):
    llama.model.layers[0].mlp.up_proj.__class__ = type("Own", (torch.nn.Linear,), {})
    opct.add_lora(llama, 4, 8)
    assert isinstance(llama.model.layers[0].mlp.up_proj, opct.LoRALinear)

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

def test_only_the_adapter_trains_and_it_is_fp32_whatever_the_model_is(llama):
    params = opct.add_lora(llama.bfloat16(), 4, 8)
    assert {id(p) for p in llama.parameters() if p.requires_grad} == {id(p) for p in params}
    a_layer = 32 * 2 * 2 + (32 + 16) * 2 + (32 + 48) * 3
    assert sum(p.numel() for p in params) == 3 * 4 * a_layer
    assert {p.dtype for p in params} == {torch.float32}
    assert llama(input_ids=IDS).logits.dtype == torch.bfloat16

@pytest.mark.parametrize("kind", ["rotary", "nested"])
def test_teacher_is_bitwise_the_loaded_model_before_during_and_after_training(kind):
    model = make_model(kind)
    loaded = model(input_ids=IDS).logits.clone()
    params = opct.add_lora(model, 4, 8)
    optimizer = torch.optim.Adam(params, lr=0.01)
    for _ in range(3):
        with opct.teacher(model):
            assert torch.equal(model(input_ids=IDS).logits, loaded)
        model(input_ids=IDS).logits.log_softmax(-1)[..., 5].mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = model(input_ids=IDS).logits
    assert (trained - loaded).abs().max() > 0.01
    with opct.teacher(model):
        assert torch.equal(model(input_ids=IDS).logits, loaded)
        with opct.teacher(model):  # nested, as in the evaluation of the base model
            assert torch.equal(model(input_ids=IDS).logits, loaded)
        assert torch.equal(model(input_ids=IDS).logits, loaded)
    assert torch.equal(model(input_ids=IDS).logits, trained)

def test_teacher_ends_also_when_something_fails_inside(llama):
    add_adapter(llama)
    student = llama(input_ids=IDS).logits
    with pytest.raises(ZeroDivisionError):
        with opct.teacher(llama):
            1 / 0
    assert torch.equal(llama(input_ids=IDS).logits, student)
