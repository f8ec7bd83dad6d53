"""Train, validate, test and predict: ``python train.py fit --config experiments/nano/2_pretrain.yaml``."""

from lit_eve.training.cli import main

if __name__ == "__main__":
    main()
