"""Models with layers that keep a state: Mamba, linear attention, and hybrids of these.

A state cannot be masked, so there is no token tree, and it has no slots, so there is no table of
them. Each prompt is answered by the library's own generation with its own caches, and each answer
is read behind its prompt alone: what opct.py computes, with K times the work on the prompt.
"""
import torch
import transformers

from data.loading import layer_kinds


def needed(model):
    """Whether the tree and the slots cannot hold for a model."""
    masked = {"full_attention", "sliding_attention"}
    return bool(getattr(model, "_is_stateful", False) or layer_kinds(model.config) - masked)


@torch.no_grad()
def sample(model, prompts, samples, max_new_tokens, temperature, eos, generator):
    """-> answers[b][k], token ids; what stands behind an end token is nothing."""
    kept, answers = model.generation_config, []
    how = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {}
    # in place of the model's own, of which nothing is to be inherited
    model.generation_config = transformers.GenerationConfig(
        max_new_tokens=max_new_tokens, eos_token_id=sorted(eos) or None, pad_token_id=0, **how)
    try:
        with torch.random.fork_rng(enabled=generator is not None):
            if generator is not None:  # generate() draws from torch's global generator
                torch.manual_seed(torch.randint(2 ** 62, (), generator=generator,
                                                device=generator.device).item())
            for prompt in prompts:
                ids = torch.tensor([prompt] * samples, device=model.device)  # (K, P)
                out = model.generate(ids, attention_mask=torch.ones_like(ids))  # (K, P + R)
                answers.append(out[:, len(prompt):].tolist())
    finally:
        model.generation_config = kept
    return answers


def read(model, packed):
    """-> (N, H) as opct.read(): every answer behind its prompt, a row of its own."""
    ids, tree, branch, at = packed.ids[0], packed.tree, packed.branch, packed.read
    first = (branch[at] == 0).nonzero()[:, 0].tolist()  # predicted by the prompt's last token
    hidden = []
    for start, end in zip(first, first[1:] + [len(at)]):
        prompt = ids[(tree == tree[at[start]]) & (branch == 0)]  # (P,)
        answer = ids[at[start + 1:end]]  # (R - 1,) without its last token
        row = torch.cat([prompt, answer])[None].to(model.device)  # (1, P + R - 1)
        states = model.base_model(input_ids=row, use_cache=False).last_hidden_state[0]
        hidden.append(states[len(prompt) - 1:])  # (R, H)
    return torch.cat(hidden)  # (N, H)
