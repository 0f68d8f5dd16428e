#!/usr/bin/env python3

"""
Demonstrates how to:
    * use the MAML wrapper for fast-adaptation,
    * use the benchmark interface to load Omniglot, and
    * sample tasks and split them in adaptation and evaluation sets.

A port of learn2learn's examples/vision/maml_omniglot.py (the original and its licence are in the folder learn2learn/).
The five lines that record training and rank its tasks end in "# influence". The other new lines read the data from
local files (omniglot_data.py) and the settings from the command line.
"""

import argparse
import pathlib

import random
import numpy as np
import torch
import learn2learn as l2l

from torch import nn, optim

import omniglot_data
from l2l_influence import MAML, TaskDataset, TaskInfluence  # influence



def accuracy(predictions, targets):
    predictions = predictions.argmax(dim=1).view(targets.shape)
    return (predictions == targets).sum().float() / targets.size(0)


def fast_adapt(batch, learner, loss, adaptation_steps, shots, ways, device):
    data, labels = batch
    data, labels = data.to(device), labels.to(device)

    # Separate data into adaptation/evalutation sets
    adaptation_indices = np.zeros(data.size(0), dtype=bool)
    adaptation_indices[np.arange(shots*ways) * 2] = True
    evaluation_indices = torch.from_numpy(~adaptation_indices)
    adaptation_indices = torch.from_numpy(adaptation_indices)
    adaptation_data, adaptation_labels = data[adaptation_indices], labels[adaptation_indices]
    evaluation_data, evaluation_labels = data[evaluation_indices], labels[evaluation_indices]

    # Adapt the model
    for step in range(adaptation_steps):
        train_error = loss(learner(adaptation_data), adaptation_labels)
        learner.adapt(train_error)

    # Evaluate the adapted model
    predictions = learner(evaluation_data)
    valid_error = loss(predictions, evaluation_labels)
    valid_accuracy = accuracy(predictions, evaluation_labels)
    return valid_error, valid_accuracy


def main(
        ways=5,
        shots=1,
        meta_lr=0.003,
        fast_lr=0.5,
        meta_batch_size=32,
        adaptation_steps=1,
        num_iterations=60000,
        cuda=torch.cuda.is_available(),
        seed=42,
        num_tasks=20000,
        architecture='fc',
        root=None,
        out=pathlib.Path('.'),
):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    device = torch.device('cpu')
    if cuda:
        torch.cuda.manual_seed(seed)
        device = torch.device('cuda')

    # Load train/validation/test tasksets using the benchmark interface
    tasksets = omniglot_data.get_tasksets(train_ways=ways,
                                                  train_samples=2*shots,
                                                  test_ways=ways,
                                                  test_samples=2*shots,
                                                  num_tasks=num_tasks,
                                                  root=root,
    )
    tasksets = tasksets._replace(train=TaskDataset(tasksets.train))  # influence

    # Create model
    model = l2l.vision.models.OmniglotFC(28 ** 2, ways)
    if architecture == 'cnn':
        model = l2l.vision.models.OmniglotCNN(ways)
    model.to(device)
    maml = MAML(model, lr=fast_lr, first_order=False)  # influence
    opt = optim.Adam(maml.parameters(), meta_lr)
    loss = nn.CrossEntropyLoss(reduction='mean')

    for iteration in range(num_iterations):
        opt.zero_grad()
        meta_train_error = 0.0
        meta_train_accuracy = 0.0
        meta_valid_error = 0.0
        meta_valid_accuracy = 0.0
        for task in range(meta_batch_size):
            # Compute meta-training loss
            learner = maml.clone()
            batch = tasksets.train.sample()
            evaluation_error, evaluation_accuracy = fast_adapt(batch,
                                                               learner,
                                                               loss,
                                                               adaptation_steps,
                                                               shots,
                                                               ways,
                                                               device)
            evaluation_error.backward()
            meta_train_error += evaluation_error.item()
            meta_train_accuracy += evaluation_accuracy.item()

            # Compute meta-validation loss
            learner = maml.clone()
            batch = tasksets.validation.sample()
            evaluation_error, evaluation_accuracy = fast_adapt(batch,
                                                               learner,
                                                               loss,
                                                               adaptation_steps,
                                                               shots,
                                                               ways,
                                                               device)
            meta_valid_error += evaluation_error.item()
            meta_valid_accuracy += evaluation_accuracy.item()

        # Print some metrics
        print('\n')
        print('Iteration', iteration)
        print('Meta Train Error', meta_train_error / meta_batch_size)
        print('Meta Train Accuracy', meta_train_accuracy / meta_batch_size)
        print('Meta Valid Error', meta_valid_error / meta_batch_size)
        print('Meta Valid Accuracy', meta_valid_accuracy / meta_batch_size)

        # Average the accumulated gradients and optimize
        for p in maml.parameters():
            p.grad.data.mul_(1.0 / meta_batch_size)
        opt.step()

    meta_test_error = 0.0
    meta_test_accuracy = 0.0
    for task in range(meta_batch_size):
        # Compute meta-testing loss
        learner = maml.clone()
        batch = tasksets.test.sample()
        evaluation_error, evaluation_accuracy = fast_adapt(batch,
                                                           learner,
                                                           loss,
                                                           adaptation_steps,
                                                           shots,
                                                           ways,
                                                           device)
        meta_test_error += evaluation_error.item()
        meta_test_accuracy += evaluation_accuracy.item()
    print('Meta Test Error', meta_test_error / meta_batch_size)
    print('Meta Test Accuracy', meta_test_accuracy / meta_batch_size)

    scores = TaskInfluence(maml, tasksets.train, loss=loss).scores(tasksets.test)  # influence
    print(scores, scores.to_csv(out / 'scores.csv'), sep='\n\nall of them in ')  # influence


if __name__ == '__main__':
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--iterations', type=int, default=60000)
    parser.add_argument('--meta-batch-size', type=int, default=32)
    parser.add_argument('--num-tasks', type=int, default=20000, help='training tasks to draw from')
    parser.add_argument('--model', choices=('fc', 'cnn'), default='fc')
    parser.add_argument('--seed', type=int, default=42)
    parser.add_argument('--out', type=pathlib.Path, default='.', help='folder for scores.csv')
    args = parser.parse_args()
    try:
        root = omniglot_data.find_data()
    except FileNotFoundError as missing:
        parser.exit(2, f'{missing}\n')
    args.out.mkdir(parents=True, exist_ok=True)
    main(num_iterations=args.iterations, meta_batch_size=args.meta_batch_size, num_tasks=args.num_tasks,
         architecture=args.model, seed=args.seed, root=root, out=args.out)
