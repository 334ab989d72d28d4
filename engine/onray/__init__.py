"""A deployment on a Ray cluster: ``engine up F --on ray``.

Ray places the parts by the CPUs and GPUs they need, and places them again when a node is lost. All else stays ours:
each part is ``engine up --only PART`` of the same file, under an actor that does nothing but hold it; requests and
batches go over our own sockets, and who lives is ours to say, for it takes Ray a minute to call a node dead that was
cut off.

    parts      which parts there are, and what each needs: pure
    holder     the actor: one part, its address, its end
    scaler     the actor that adds and takes away workers as their demand changes
    actors     how they are found, started and asked
    cluster    up, status, down: what the command does

The actors are detached: they outlive the command that made them, and ``engine down F --on ray`` ends them.
"""
