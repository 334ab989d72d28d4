"""What is wrong with this machine, or with a deployment, and what to do about each: ``engine doctor``.

    finding    what is found, and how it is shown
    machine    this machine: descriptors, CPUs, memory, clocks, kernel, packages, GPUs
    place      where a deployment is to run: ports, files, brokers, or what runs there already

Each check reads something and hands it to a function that judges: those are pure, and named ``judge_...``.
"""
