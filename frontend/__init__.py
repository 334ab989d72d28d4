"""The HTTP side: a Falcon ASGI application, and the gunicorn that runs it in as many processes as asked.

Where to look:

    app        put together: exchange -> Falcon -> resources; `create` takes its collaborators
    exchange   the thin ASGI layer around Falcon: request id, metrics, and access to the connection's own `receive`
    resources  a route: admission, body, deadline, submit, answer; and /metrics
    asking     what a request of the Open Inference Protocol asks for; pure
    oip        that protocol's pages
    inference  the same in the OpenAPI document; pure
    models     the list of models of OpenAI's API
    health     /, /healthz, /readyz
    head       what the head of a request means; pure, as are the next two
    gate       may a request come in? Counts, bounds
    endpoints  functions of the service's own that answer a path
    cors       whose pages may ask from a browser; pure
    apikeys    the API keys by which clients come in
    board      what all processes know of the limits of these
    answer     what a request is answered with, for every way out
    handlers   the same as Falcon's responses
    waiting    a request that Falcon serves, from the broker's hands to its answer
    accepting  new connections, and those that end with their first answer
    lean       the short way of the plain case, on the connection itself
    shared     what these connections use together
    sweeper    their time limits
    inbox      what has come on such a connection before its turn
    plain      what is plain; pure, as are the next three
    shapes     heads that differ in ids and lengths alone, read by one expression
    chunked    bodies in chunks
    writer     replies as bytes
    frames     what frames of HTTP/2 that carry no request may cost; pure
    body       reading a request's body within its limits
    openapi    the OpenAPI document, from what the stages say about themselves
    components names for the types of many stages in one document
    files      pages from static/
    swagger    Swagger UI
    ui         the live page of the deployment, and what it shows
    onlookers  who sees that page, and how often the broker is asked for them
    compression  gzip, zstd and deflate: which one, and answers
    unpacking  bodies out of them, by bounded steps; pure
    pace       how slow a client may be, sending or reading; pure
    partial    what has begun to come and is not whole, of all connections; pure
    unsent     answers that are written and not read: how much, for how long
    lingering  the end of a connection, by halves
    streams    an answer that is sent while it is computed, and how it ends
    jobs       requests whose answers are fetched later
    errors     ONE table of everything that can be answered instead of a result
    protocols  whose API a path speaks, and its form of errors; pure
    hook       a form of errors of the service's own
    media      text or problem+json, as the client asks; which headers of a worker are passed on
    idempotency  what an Idempotency-Key says of a request; pure
    requestid, timing, deadline   one header each: x-request-id, server-timing, x-request-timeout
    qos        how a request wants to be served: x-slo, x-priority, and who asks; pure
    metrics    what this process counts
    memo       by what the cache of a route's first stage knows a request
    accesslog  a line for each request, where that is asked for
    tracing    a span for each request that is sampled, where OpenTelemetry's variables ask for them
    broker     what the application needs of the broker's client (engine.client in production, a fake in tests)
    serve      the process
    crowd      more clients than descriptors: who makes room; pure
    listening  the sockets it listens on
    serving    gunicorn, and all that knows of it: worker processes, connections, stopping
    tls        certificate, key, HTTP/2 by ALPN

A request passes `exchange`, then `gate` before its body is read, then `body`, then `client.submit`; one answer
comes out by the deadline plus a small grace, whatever happens behind.
"""
