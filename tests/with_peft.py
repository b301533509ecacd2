"""Does PEFT load the adapter of a run as it is, and give the logits that opct.py gives? CI
asks in an environment of its own: PEFT is no requirement of this project.

    pip install -r requirements.txt peft
    python tests/with_peft.py RUN       the folder of a run of opct.py
"""
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import peft  # noqa: E402
import torch  # noqa: E402

import opct  # noqa: E402

run = Path(sys.argv[1])
cfg = opct.Config(**json.loads((run / "results.json").read_text())["config"])
cfg.dtype, cfg.device = "float32", "cpu"
model, tokenizer = opct.load_model(cfg)
question = opct.chat("What is the capital of Kenya? I think it is Mombasa.")
ids = torch.tensor([opct.encode(tokenizer, question)])  # (1, P)
base = model(input_ids=ids).logits
opct.add_lora(model, cfg.lora_rank, cfg.lora_alpha)
adapter = torch.load(run / "checkpoint.pt", weights_only=True)["adapter"]
unknown = model.load_state_dict(adapter, strict=False).unexpected_keys
ours = model(input_ids=ids).logits

plain, _ = opct.load_model(cfg)
theirs = peft.PeftModel.from_pretrained(plain, str(run)).eval()(input_ids=ids).logits
print(json.dumps({"version": peft.__version__, "largest logit": ours.abs().max().item(),
                  "largest difference": (ours - theirs).abs().max().item(),
                  "adapter off": (ours - base).abs().max().item()}))
torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)
if unknown or (ours - base).abs().max() < 1e-2:
    sys.exit("the adapter does nothing: this run shows nothing")
