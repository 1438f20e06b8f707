//! The description of the API (OpenAPI 3.1), made of the declarations and of the types.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use utoipa::{
    ToSchema,
    openapi::{RefOr, Schema},
};

use super::{Nothing, Operation, Page};

type Named = (String, RefOr<Schema>);

/// An answer that can be described.
pub(crate) trait Described {
    /// Its schema; what it refers to goes into `named`.
    fn describe(named: &mut Vec<Named>) -> Value;
}

impl<T: ToSchema> Described for Page<T> {
    fn describe(named: &mut Vec<Named>) -> Value {
        json!({
            "type": "object",
            "required": ["items", "next"],
            "additionalProperties": false,
            "properties": {
                "items": {"type": "array", "items": reference::<T>(named)},
                "next": {"type": ["string", "null"], "description": "cursor of the next page"},
            },
        })
    }
}

/// One thing.
#[derive(Debug, serde::Serialize)]
#[serde(transparent)]
pub(crate) struct One<T>(pub(crate) T);

impl<T: ToSchema> Described for One<T> {
    fn describe(named: &mut Vec<Named>) -> Value {
        reference::<T>(named)
    }
}

fn reference<T: ToSchema>(named: &mut Vec<Named>) -> Value {
    T::schemas(named);
    named.push((T::name().into_owned(), T::schema()));
    json!({"$ref": format!("#/components/schemas/{}", T::name())})
}

fn value(schema: &RefOr<Schema>) -> Value {
    serde_json::to_value(schema).unwrap_or_default()
}

/// The document as it grows.
#[derive(Default)]
pub(super) struct Document {
    paths: BTreeMap<String, Map<String, Value>>,
    schemas: BTreeMap<String, Value>,
}

impl Document {
    pub(super) fn add<Q: ToSchema, B: ToSchema, R: Described>(&mut self, operation: &Operation) {
        let mut named = Vec::new();
        let mut told = json!({
            "operationId": operation.id,
            "summary": operation.summary,
            "security": [{"dpop": []}],
            "x-permissions": operation.needs,
            "parameters": parameters::<Q>(operation),
            "responses": {
                "200": {
                    "description": "done",
                    "content": {"application/json": {"schema": R::describe(&mut named)}},
                },
                "default": {
                    "description": "not done; `code` is one of docs/errors.md",
                    "content": {
                        "application/problem+json": {
                            "schema": {"$ref": "#/components/schemas/Problem"},
                        },
                    },
                },
            },
        });
        if B::name() != Nothing::name()
            && let Some(object) = told.as_object_mut()
        {
            let schema = reference::<B>(&mut named);
            let body =
                json!({"required": true, "content": {"application/json": {"schema": schema}}});
            object.insert("requestBody".to_owned(), body);
        }
        self.schemas.extend(named.iter().map(|(name, schema)| (name.clone(), value(schema))));
        let path = format!("{}{}", super::BASE, operation.path);
        self.paths.entry(path).or_default().insert(operation.method.name().to_owned(), told);
    }

    /// An operation whose answer is no JSON of a declared form. `open`: everybody may ask.
    pub(super) fn add_raw<Q: ToSchema>(
        &mut self,
        operation: &Operation,
        kinds: &[&str],
        open: bool,
    ) {
        let form = |kind: &str| match kind {
            "application/json" => json!({}),
            _ => json!({"schema": {"type": "string"}}),
        };
        let content: Map<String, Value> =
            kinds.iter().map(|kind| ((*kind).to_owned(), form(kind))).collect();
        let told = json!({
            "operationId": operation.id,
            "summary": operation.summary,
            "security": if open { json!([]) } else { json!([{"dpop": []}]) },
            "x-permissions": operation.needs,
            "parameters": parameters::<Q>(operation),
            "responses": {"200": {"description": "done", "content": content}},
        });
        let path = format!("{}{}", super::BASE, operation.path);
        self.paths.entry(path).or_default().insert(operation.method.name().to_owned(), told);
    }

    pub(super) fn finish(mut self) -> String {
        self.schemas.insert("Problem".to_owned(), problem());
        json!({
            "openapi": "3.1.0",
            "info": {
                "title": "Adit mediator",
                "version": env!("CARGO_PKG_VERSION"),
                "license": {"name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0"},
                "description": "Authentication, pages, repeated requests and limits: docs/api.md",
            },
            "paths": self.paths,
            "components": {
                "schemas": self.schemas,
                "securitySchemes": {
                    "dpop": {
                        "type": "http",
                        "scheme": "DPoP",
                        "description": "RFC 9449, alg EdDSA, with a nonce",
                    },
                },
            },
        })
        .to_string()
    }
}

fn parameters<Q: ToSchema>(operation: &Operation) -> Vec<Value> {
    let names = operation.path.split('/').filter_map(|part| part.strip_prefix('{'));
    let mut found: Vec<Value> = names
        .map(|name| {
            let name = name.trim_end_matches('}');
            json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}})
        })
        .collect();
    let schema = value(&Q::schema());
    let required = |name: &str| {
        let list = schema.get("required").and_then(Value::as_array);
        list.is_some_and(|list| list.iter().any(|known| known == name))
    };
    if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
        found.extend(properties.iter().map(|(name, schema)| {
            json!({"name": name, "in": "query", "required": required(name), "schema": schema})
        }));
    }
    if operation.method == super::Method::Post {
        found.push(json!({
            "name": "Idempotency-Key",
            "in": "header",
            "required": false,
            "schema": {"type": "string", "minLength": 8, "maxLength": 128},
        }));
    }
    found
}

fn problem() -> Value {
    json!({
        "type": "object",
        "required": ["type", "title", "status", "code", "detail"],
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "code": {"type": "string"},
            "detail": {"type": "string"},
            "hint": {"type": ["string", "null"]},
        },
    })
}
