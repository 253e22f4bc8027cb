"""The paper's experiments in virtual time: `experiments` lists runs, `runs` executes them, `report` describes them."""
