"""``python -m lit_eve.training.cli fit ...`` is ``python train.py fit ...``, from any folder."""

from lit_eve.training.cli import main

if __name__ == "__main__":
    main()
