//! Lists show what decisions allow, filtered in SQL by the table of bindings.
//!
//! Which of a subject's bindings count at this moment (permission, hours, source) is found out
//! by the same code that decides; the database then matches their scopes with each row.

use crate::{
    roles::{Act, Context, Rule},
    store::access::When,
};

/// A condition for a statement, with the texts that it binds to `$1`, `$2`, ….
#[derive(Clone, Debug)]
pub(crate) struct Clause {
    pub(crate) text: String,
    pub(crate) values: Vec<String>,
}

/// Rows whose computer (`k.id`, `k.client_id`, `k.partner_id`, or the same columns of another
/// table with the given names) the subject may do `act` with.
pub(crate) fn computers(
    rules: &[Rule],
    act: Act<'_>,
    context: &Context,
    columns: &Columns,
) -> Clause {
    let now = context.facts.now_ms;
    let usable = rules.iter().filter(|rule| {
        rule.is_current(now)
            && rule.role.grants(act.permission, act.redirector)
            && rule.check(act.permission.needs(), &context.facts).is_ok()
    });
    let mut values = vec![context.partner.clone()];
    let mut places = Vec::new();
    for rule in usable {
        values.push(rule.binding.clone());
        places.push(format!("${}", values.len()));
    }
    let Columns { computer, client, partner } = columns;
    let text = if places.is_empty() {
        format!("({partner} = $1 AND 1 = 0)")
    } else {
        format!(
            "({partner} = $1 AND EXISTS (SELECT 1 FROM access_binding b \
             WHERE b.id IN ({}) AND {} AND (b.scope_kind = 'installation' \
             OR (b.scope_partner_id = {partner} AND (b.scope_kind = 'partner' \
             OR (b.scope_kind = 'client' AND b.scope_client_id = {client}) \
             OR (b.scope_kind = 'computer' AND b.scope_id = {computer}) \
             OR (b.scope_kind IN ('group', 'tag') AND EXISTS (SELECT 1 FROM computer_label l \
             WHERE l.computer_id = {computer} AND l.kind = b.scope_kind \
             AND l.label = b.scope_id AND {})))))))",
            places.join(", "),
            When::Now.valid("b."),
            When::Now.valid("l.")
        )
    };
    Clause { text, values }
}

/// Of those rows (`k`) only the ones with a group or tag.
pub(crate) fn labelled(clause: &mut Clause, kind: &str, label: &str) {
    let (kind, label) = (clause.bind(kind), clause.bind(label));
    clause.text = format!(
        "({} AND EXISTS (SELECT 1 FROM computer_label w WHERE w.computer_id = k.id \
         AND w.kind = {kind} AND w.label = {label} AND {}))",
        clause.text,
        When::Now.valid("w.")
    );
}

/// The columns of the row that is filtered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Columns {
    pub(crate) computer: &'static str,
    pub(crate) client: &'static str,
    pub(crate) partner: &'static str,
}

/// Of the table of computers as `k`.
pub(crate) const COMPUTER: Columns =
    Columns { computer: "k.id", client: "k.client_id", partner: "k.partner_id" };
/// Of the table of sessions as `s`.
pub(crate) const SESSION: Columns =
    Columns { computer: "s.computer_id", client: "s.client_id", partner: "s.partner_id" };

impl Clause {
    /// Adds a text to bind and gives its placeholder.
    pub(crate) fn bind(&mut self, value: impl Into<String>) -> String {
        self.values.push(value.into());
        format!("${}", self.values.len())
    }
}
