"""Rollouts: who gets a version when, which evidence lets it go on, and how it is taken back.

Rooms: `policy` (what is allowed), `selection`, `cohorts`, `pace` and `choosing` (who is next), `observation` and
`evidence` (what was seen), `comparison` and `gates` (what it means), `progress`, `commands`, `approvals` and
`state_machine` (what follows), `desired`, `freshness`, `records`, `device_rows`, `assigning`, `looking` and `driver`
(doing it), `repository` and `views` (what the operator API calls), `planning`, `power_of_gates` and `simulation` (what
would happen). Deciding is pure; only what is doing, or called by the API, touches the database.
"""
