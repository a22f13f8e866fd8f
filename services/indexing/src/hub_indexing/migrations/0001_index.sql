-- Research studies by (study, source, revision). UIDs and pseudonyms compare by bytes, whatever the database's locale.

CREATE TABLE subjects (
    subject text COLLATE "C" PRIMARY KEY
);
COMMENT ON TABLE subjects IS 'Research subjects that have at least one study here.';

CREATE TABLE studies (
    study_instance_uid text COLLATE "C" NOT NULL,
    source text COLLATE "C" NOT NULL,
    revision integer NOT NULL CHECK (revision >= 1),
    subject text COLLATE "C" REFERENCES subjects,
    profile text NOT NULL,
    key_version integer NOT NULL,
    manifest_bucket text NOT NULL,
    manifest_key text NOT NULL,
    manifest_sha256 text NOT NULL,
    instances integer NOT NULL CHECK (instances >= 0),
    attributes jsonb NOT NULL,
    indexed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (study_instance_uid, source),
    CHECK (instances = 0 OR subject IS NOT NULL)
);
CREATE INDEX studies_subject ON studies (subject);
COMMENT ON TABLE studies IS 'The newest revision of each study from each source. A row with 0 instances stays: it keeps older revisions out.';
COMMENT ON COLUMN studies.attributes IS 'Patient and study level attributes as DICOM JSON.';

CREATE TABLE series (
    study_instance_uid text COLLATE "C" NOT NULL,
    source text COLLATE "C" NOT NULL,
    series_instance_uid text COLLATE "C" NOT NULL,
    modality text COLLATE "C" NOT NULL,
    instances integer NOT NULL CHECK (instances >= 1),
    attributes jsonb NOT NULL,
    PRIMARY KEY (study_instance_uid, source, series_instance_uid),
    FOREIGN KEY (study_instance_uid, source) REFERENCES studies
);
CREATE INDEX series_uid ON series (series_instance_uid);
CREATE INDEX series_modality ON series (modality);

CREATE TABLE instances (
    study_instance_uid text COLLATE "C" NOT NULL,
    source text COLLATE "C" NOT NULL,
    sop_instance_uid text COLLATE "C" NOT NULL,
    series_instance_uid text COLLATE "C" NOT NULL,
    sop_class_uid text COLLATE "C" NOT NULL,
    modality text COLLATE "C" NOT NULL,
    object_bucket text NOT NULL,
    object_key text NOT NULL,
    object_sha256 text NOT NULL,
    object_size bigint NOT NULL CHECK (object_size >= 0),
    attributes jsonb NOT NULL,
    PRIMARY KEY (study_instance_uid, source, sop_instance_uid),
    FOREIGN KEY (study_instance_uid, source, series_instance_uid) REFERENCES series
);
CREATE INDEX instances_series ON instances (study_instance_uid, source, series_instance_uid);
CREATE INDEX instances_uid ON instances (sop_instance_uid);

-- The same study from two trusts is two sources. One reaches readers: the one with most instances; of equals the smaller name.
CREATE VIEW canonical_studies AS
SELECT s.*
FROM studies s
WHERE s.instances > 0
  AND NOT EXISTS (
    SELECT 1 FROM studies o
    WHERE o.study_instance_uid = s.study_instance_uid
      AND (o.instances > s.instances OR (o.instances = s.instances AND o.source < s.source))
  );

CREATE VIEW export_instances AS
SELECT s.subject, i.study_instance_uid, i.series_instance_uid, i.sop_instance_uid, i.source, i.sop_class_uid, i.modality,
       i.object_bucket, i.object_key, i.object_sha256, i.object_size, i.attributes
FROM canonical_studies s
JOIN instances i USING (study_instance_uid, source);
COMMENT ON VIEW export_instances IS 'What datasets are made of: one row per instance of canonical sources.';

CREATE VIEW indexed_studies AS
SELECT s.study_instance_uid, s.source, s.revision, s.subject, s.instances, s.indexed_at, c.source IS NOT NULL AS canonical
FROM studies s
LEFT JOIN canonical_studies c USING (study_instance_uid, source);
COMMENT ON VIEW indexed_studies IS 'For operators: which revision of which source is indexed, and which source readers see.';
