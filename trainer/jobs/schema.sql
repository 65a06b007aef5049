CREATE TABLE IF NOT EXISTS files (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  created_at REAL NOT NULL,
  filename TEXT NOT NULL,
  purpose TEXT NOT NULL,
  bytes INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS jobs (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  created_at REAL NOT NULL,
  status TEXT NOT NULL,
  request TEXT NOT NULL,
  training TEXT NOT NULL,
  metadata TEXT,
  seed INTEGER NOT NULL,
  training_file TEXT NOT NULL,
  validation_file TEXT,
  wanted TEXT NOT NULL DEFAULT 'run',
  hold TEXT,
  reason TEXT,
  finished_at REAL,
  error TEXT,
  fine_tuned_model TEXT,
  result_files TEXT NOT NULL DEFAULT '[]',
  trained_tokens INTEGER,
  step INTEGER,
  steps INTEGER,
  estimated_finish REAL,
  restarts INTEGER NOT NULL DEFAULT 0,
  events_offset INTEGER NOT NULL DEFAULT 0,
  runner TEXT,
  lease_until REAL
);
CREATE INDEX IF NOT EXISTS jobs_by_status ON jobs (status, seq);
CREATE TABLE IF NOT EXISTS events (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  job_id TEXT NOT NULL REFERENCES jobs (id),
  created_at REAL NOT NULL,
  level TEXT NOT NULL,
  message TEXT NOT NULL,
  data TEXT,
  step INTEGER
);
CREATE INDEX IF NOT EXISTS events_by_job ON events (job_id, seq);
CREATE UNIQUE INDEX IF NOT EXISTS metrics_by_step ON events (job_id, step) WHERE step IS NOT NULL;
CREATE TABLE IF NOT EXISTS checkpoints (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  job_id TEXT NOT NULL REFERENCES jobs (id),
  created_at REAL NOT NULL,
  step INTEGER NOT NULL,
  path TEXT NOT NULL,
  metrics TEXT NOT NULL,
  UNIQUE (job_id, step)
);
CREATE TABLE IF NOT EXISTS runners (
  id TEXT PRIMARY KEY,
  seen_at REAL NOT NULL
);
