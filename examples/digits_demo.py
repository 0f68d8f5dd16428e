"""Find the training tasks that harm a meta-learner: the same as ``l2l-influence demo``. ``--help`` lists options."""

import sys

from l2l_influence.app.cli import main

if __name__ == "__main__":
    main(["demo", *sys.argv[1:]])
