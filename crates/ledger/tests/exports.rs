//! CSV, CEF and OCSF: hostile text stays text.

use adit_ledger::{
    Entry, Event, Level,
    export::{cef, csv, ocsf},
};

fn hostile() -> Entry {
    let event = Event::new("session.refused", Level::Significant)
        .outcome("refused")
        .partner("p|1=\\")
        .actor("=HYPERLINK(\"http://evil\")")
        .source("[2001:db8::1]:40000")
        .computer("-2+3")
        .target("10.0.0.1:22")
        .reason("a\r\n\"b\",c\u{1b}[31m\u{9b}2J | x=y \\")
        .ticket("\t@SUM(A1)")
        .bytes_up(5)
        .bytes_down(7)
        .extra_personal("note", "=1+1");
    Entry::seal(7, 1_760_000_000_000, event, [3; 16])
}

#[test]
fn csv_cells_are_no_formulas_and_records_stay_on_a_line() {
    let (header, row) = (csv::header(), csv::row(&hostile()));
    let text = format!("{header}{row}");
    assert_eq!(text.matches('\n').count(), 2);
    assert!(!row.trim_end().chars().any(char::is_control));
    let mut reader = ::csv::Reader::from_reader(text.as_bytes());
    let headers = reader.headers().unwrap().clone();
    let record = reader.records().next().unwrap().unwrap();
    for cell in &record {
        assert!(!cell.trim_start().starts_with(['=', '+', '-', '@']), "{cell}");
    }
    let column = |name: &str| {
        let index = headers.iter().position(|h| h == name).unwrap();
        record[index].to_owned()
    };
    assert_eq!(column("actor"), "'=HYPERLINK(\"http://evil\")");
    assert_eq!(column("seq"), "7");
    assert_eq!(column("target"), "10.0.0.1:22");
}

#[test]
fn cef_separators_in_text_are_escaped() {
    let line = cef::line(&hostile(), "1|0");
    assert!(line.starts_with("CEF:0|Adit|mediator|1\\|0|session.refused|session.refused|7|rt="));
    assert!(!line.chars().any(char::is_control));
    assert!(line.contains(" c6a2=2001:db8::1 c6a2Label=Source IPv6 Address spt=40000 "), "{line}");
    assert!(line.contains(" AditMediatorPartner=p|1\\=\\\\ "), "{line}");
    assert!(line.contains(" suser=\\=HYPERLINK"), "{line}");
    assert!(line.contains("x\\=y \\\\"), "{line}");
}

#[test]
fn ocsf_is_json_with_the_whole_entry() {
    let line = ocsf::line(&hostile(), "1.0");
    assert!(!line.chars().any(char::is_control));
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(value["class_uid"], 4001);
    assert_eq!(value["type_uid"], 400_105);
    assert_eq!(value["status_id"], 2);
    assert_eq!(value["src_endpoint"]["ip"], "2001:db8::1");
    assert_eq!(value["dst_endpoint"]["port"], 22);
    assert_eq!(value["unmapped"]["seq"], 7);
    assert_eq!(value["traffic"]["bytes_in"], 7);
    assert!(value["unmapped"]["reason"].as_str().unwrap().contains('\u{1b}'));
}
