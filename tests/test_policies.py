"""Section 3: student and teacher in one set of weights."""
import pytest
import torch
from configs import FAMILIES
from conftest import make_model, prompt_of

import opct

def logits(model):
    return model(input_ids=torch.tensor([prompt_of(12, 0)])).logits

@pytest.mark.parametrize("kind", ["rotary", "nested"])
def test_adapter_is_on_every_linear_layer_of_the_text_model_but_the_head(kind):
    model = make_model(kind)
    mlp = model.get_decoder().layers[0].mlp
    mlp.up_proj.__class__ = type("Own", (torch.nn.Linear,), {})  # a subclass is one, too
    opct.add_lora(model, 4, 8)
    adapted = [n for n, m in model.named_modules() if isinstance(m, opct.LoRALinear)]
    assert len(adapted) == 3 * 7 and isinstance(mlp.up_proj, opct.LoRALinear)
    assert not any("lm_head" in name or "vision" in name for name in adapted)

def test_no_adapter_bears_a_name_that_peft_takes_for_the_experts():
    opct.add_lora(mixture := make_model(FAMILIES["DeepSeek-V3"]()), 4, 8)
    names = [n for n, m in mixture.named_modules() if isinstance(m, opct.LoRALinear)]
    assert names and not any(".mlp." in name for name in names)

def test_lora_adds_scaled_ba():
    base, x = torch.nn.Linear(6, 5), torch.randn(3, 6)
    layer = opct.LoRALinear(base, 2, 8)
    layer.B.data.normal_()
    expected = x @ (base.weight + 8 / 2 * layer.B @ layer.A).T + base.bias
    torch.testing.assert_close(layer(x), expected)

def test_only_the_adapter_trains_and_it_is_fp32_whatever_the_model_is(llama):
    params = opct.add_lora(llama.bfloat16(), 4, 8)
    assert {id(p) for p in llama.parameters() if p.requires_grad} == {id(p) for p in params}
    a_layer = 32 * 2 * 2 + (32 + 16) * 2 + (32 + 48) * 3
    assert sum(p.numel() for p in params) == 3 * 4 * a_layer
    assert {p.dtype for p in params} == {torch.float32}
    assert logits(llama).dtype == torch.bfloat16

@pytest.mark.parametrize("kind", ["rotary", "nested"])
def test_teacher_is_bitwise_the_loaded_model_and_ends_also_when_something_fails(kind):
    model = make_model(kind)
    loaded, params = logits(model), opct.add_lora(model, 4, 8)
    assert torch.equal(logits(model), loaded)  # the student begins as the base model
    optimizer = torch.optim.Adam(params, lr=0.01)
    for _ in range(3):
        with opct.teacher(model):
            assert torch.equal(logits(model), loaded)
        logits(model).log_softmax(-1)[..., 5].mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert ((trained := logits(model)) - loaded).abs().max() > 0.01
    with opct.teacher(model):
        assert torch.equal(logits(model), loaded)
        with opct.teacher(model):  # nested, as in the evaluation of the base model
            assert torch.equal(logits(model), loaded)
        assert torch.equal(logits(model), loaded)
    assert torch.equal(logits(model), trained)
    with pytest.raises(ZeroDivisionError), opct.teacher(model):
        1 / 0
    assert torch.equal(logits(model), trained)
