"""Does PEFT load the adapter of a run unchanged, and say what opct.py says? CI asks, in an
environment of its own: PEFT is no requirement of this project.

    pip install -r requirements.txt peft
    python tests/with_peft.py RUN [MERGED]      folders of a run, and of what --merge made of it
"""
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import peft  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

import opct  # noqa: E402
from data import adapter  # noqa: E402

run, merged = Path(sys.argv[1]), sys.argv[2:]
cfg = opct.Config(**json.loads((run / "results.json").read_text())["config"])
cfg.dtype = "float32"
model, tokenizer = opct.load_model(cfg)
ids = torch.tensor([opct.encode(tokenizer, [{"role": "user", "content": text}])
                    for text in ("What is the capital of Kenya? I think it is Mombasa.",)])
base = model(input_ids=ids).logits
opct.add_lora(model, cfg.lora_rank, cfg.lora_alpha)
adapter.load(model, run)
ours = model(input_ids=ids).logits

plain, _ = opct.load_model(cfg)
wrapped = peft.PeftModel.from_pretrained(plain, str(run)).eval()
with torch.no_grad():
    theirs = {"peft": wrapped(input_ids=ids).logits}
    if merged:
        folder = transformers.AutoModelForCausalLM.from_pretrained(merged[0], dtype=torch.float32)
        theirs["merged"] = folder(input_ids=ids).logits
apart = {name: (logits - ours).abs().max().item() for name, logits in theirs.items()}
print(json.dumps({"version": peft.__version__, "largest logit": ours.abs().max().item(),
                  "largest difference": apart, "adapter off": (ours - base).abs().max().item()}))
for logits in theirs.values():
    torch.testing.assert_close(logits, ours, atol=1e-5, rtol=1e-5)
if (ours - base).abs().max() < 1e-2:
    sys.exit("the adapter does nothing: this run shows nothing")
