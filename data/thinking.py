"""The thinking part of an answer, found by the tags that the chat template itself uses."""
import bisect

import torch

TAGS = [("<think>", "</think>"), ("<thinking>", "</thinking>"), ("[THINK]", "[/THINK]"),
        ("<seed:think>", "</seed:think>"), ("<|START_THINKING|>", "<|END_THINKING|>"),
        ("<|channel|>analysis", "<|channel|>final<|message|>")]


class Thinking:
    """How a model thinks: on says what its template is told."""

    def __init__(self, tokenizer, on):
        template = str(tokenizer.chat_template or "")
        self.tokenizer, self.opened = tokenizer, False
        self.open, self.close = next((t for t in TAGS if t[1] in template), ("", ""))
        if self.close:  # some templates begin the thinking for the model
            prompt = tokenizer.apply_chat_template(
                [{"role": "user", "content": "a"}], add_generation_prompt=True, tokenize=False,
                enable_thinking=on)
            self.opened = prompt.rstrip().endswith(self.open)

    def length(self, answer):
        """Tokens at the beginning of an answer (ids) that are thinking, the closing tag among them:
        0 if it does not think, all if it never ends."""
        def closed(n):
            return self.close in self.tokenizer.decode(answer[:n])
        if not self.close:
            return 0
        if closed(len(answer)):
            return bisect.bisect_left(range(len(answer)), True, key=closed)
        begun = self.tokenizer.decode(answer).lstrip().startswith(self.open)
        return len(answer) if self.opened or begun else 0


def length(model, answer):
    how = getattr(model, "thinking", None)
    return how.length(answer) if how else 0


def said(model, tokenizer, answer):
    """-> what an answer (ids) says after its thinking; the thinking; whether it was cut off in it,
    None if the model does not think."""
    n, thinks = length(model, answer), bool(getattr(getattr(model, "thinking", None), "close", ""))
    thought, text = (tokenizer.decode(part, skip_special_tokens=True).strip()
                     for part in (answer[:n], answer[n:]))
    return text, thought, 0 < n == len(answer) if thinks else None


def learned(model, answers, cfg):
    """(N,) for the N tokens of some answers: 1 for those that count in the loss, 0 for those of
    thinking with --train-on-thinking no."""
    skip = cfg.train_on_thinking == "no"
    return torch.cat([torch.arange(len(a)) >= (length(model, a) if skip else 0)
                      for a in answers]).float().to(model.device)  # (N,)
