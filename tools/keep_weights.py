"""Keep the weights of recorded runs: python tools/keep_weights.py RESULTS METHOD ...

Trains each method once more at the first seed, and writes its weights beside the recorded results, under the name that
`advtrain.load_results(RESULTS).run(METHOD)` looks for. Where training gives other weights than the recorded ones, as
it may on another processor, nothing is written: keep them where the results were made.
"""

import sys
from pathlib import Path

import advtrain as at
from advtrain.experiments.trials import one_thread, train
from advtrain.results.networks import digest_of_weights, weights_file
from advtrain.weights import save_weights

FOLDER = Path(__file__).resolve().parent.parent / "book" / "results" / "weights"


def main(name, methods):
    results = at.load_results(name)
    for trial in [results.of(method)[0] for method in methods]:
        with one_thread("cpu"):
            model = train(trial.config, None, "cpu").model
        if digest_of_weights(model) != trial.made["weights"]:
            sys.exit(f"{trial.method} at seed {trial.seed}: training gives other weights here than those recorded")
        FOLDER.mkdir(exist_ok=True)
        save_weights(model, FOLDER / weights_file(trial))
        print(f"{weights_file(trial)}  {trial.method}, seed {trial.seed}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2:])
