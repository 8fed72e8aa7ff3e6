"""A teacher writes rationales, and labels where records have none.

    prompt.py         instruction, solved examples and question: the prompt of a record
    teachers/         who answers: an OpenAI-compatible server, a base, a registry version
    local_client.py   the client of teachers whose weights are on the cluster
    cache.py          responses by content of teacher, sampling and prompt: no request is sent twice
    reading.py        a response as rationale and label
    filters.py        the vote over samples, and the filters
    report.py         the written records, counts and cost
    run.py            all of it on Ray Data; the only module here that imports Ray

The cache keeps the teacher's plain text, so that other markers, votes or filters cost nothing.
"""
