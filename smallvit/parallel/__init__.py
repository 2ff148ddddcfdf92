"""Several processes that train one network, and batches that are cut into parts.

All that is distributed is in this package. ``launch`` reads what torchrun says, without torch;
``process_group`` joins the processes; ``processes`` is what they say to each other; ``rows`` says
which rows of a batch a part has; ``by_rows`` lets layers that look at other rows, or draw for them,
do so for the whole batch.

The contract:

- Alone, a process is the first of one: the functions of ``processes`` are the identity, and rows
  are ``None``, for all.
- A step is that of the whole batch, to rounding, whatever the number of processes and
  micro-batches. A part holds rows and their mirror images, which they are mixed with; its loss
  weighs as much as its share of the rows.
- Torch's generator has one seed a step in all processes. Layers draw for the whole batch and take
  their rows.
- Gradients are added up in one message after the backward pass (``processes.add_up_gradients_``).
- Evaluation deals batches out and puts the results in order, so it is the same to the last bit.
- The first process alone writes. The others get what it decides, and fail with what it fails with
  (``processes.on_first``).
- Where a process is lost, messages to it fail in the others, and the first one saves what it has.
"""
