"""Train, validate, test and predict: ``python train.py fit --config experiments/nano/2_pretrain.yaml``."""

import gc

gc.disable()  # imports leave no garbage, and looking for it takes a quarter of the time until `fit --help` answers
from lit_eve.training.cli import main  # noqa: E402

gc.freeze()
gc.enable()

if __name__ == "__main__":
    main()
